"""Mistakes of a first hour and what each says, as a table: ``python -m tests.errors`` writes ``docs/errors.md``.

Each row is a line of code that is run; the message is what it raised.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from hosts.mistakes import Branch, Collects, ItsOwnGenerator, Numpy, Text
from hosts.small import Net, batch, net

import resfx

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"

MISTAKES: dict[str, tuple[str, ...]] = {
    "Inputs": (
        'resfx.scan(model, {"x": x})', "resfx.scan(model, kwargs=x)", 'resfx.scan(text, "Once upon a time")',
        'resfx.scan(model, kwargs={"inputs": x})', 'resfx.scan(text, kwargs={"input_id": ids})', "resfx.scan(text)",
        "resfx.scan(text, ids.float())", "resfx.scan(text, (ids.tolist(),))", "resfx.scan(text, ids + 100)",
        "resfx.scan(model, x[:0])", "resfx.scan(model, x[..., :5])", "resfx.scan(model, x.double())",
        'resfx.scan(model, x.to("meta"))', "new.blocks[0](x[..., :5])",
    ),
    "Models": (
        "resfx.scan(Net, x)", "resfx.scan([model], x)", 'resfx.scan("model.pt2")',
        'resfx.scan(torch.compile(model, backend="eager"), x)',
        "resfx.scan(torch.nn.DataParallel(model), x)", "resfx.scan(made_in_inference_mode, x)",
        "resfx.rewrite(torch.nn.Linear(8, 8), args=x)", "resfx.scan(Branch(), x)", "resfx.scan(Numpy(), x)",
        "resfx.scan(ItsOwnGenerator(), x)", "resfx.scan(Collects(), (x, []))",
    ),
    "Methods and options": (
        "resfx.rewrite(model, [], x)", 'resfx.rewrite(model, "hyperconnections", x)',
        "resfx.rewrite(model, resfx.DDL, x)",
        'resfx.rewrite(model, "ddl", x, gate_hidden=128)', 'resfx.rewrite(model, "ddl", x, inclde="blocks.0")',
        "resfx.DDL(gate_hiden=128)", 'resfx.DDL(value_channels="4")', 'resfx.DDL(target="strem")', "resfx.DDL(4)",
        "resfx.DDL(eps=0)", 'resfx.compile_blocks(new, backend="indutcor")',
        "resfx.checkpoint_blocks(new, use_rentrant=False)",
        'resfx.rewrite(model, "ddl", x, start="warm")', 'resfx.rewrite(model, "ddl", x, forms=("identty",))',
        'resfx.rewrite(model, "ddl", x, include="layers.*")',
        'resfx.rewrite(model, "ddl", x, include=["blocks.0", "block.1"])',
        'resfx.rewrite(model, "ddl", x, exclude="block.1")', 'resfx.rewrite(new, "ddl")',
    ),
    "Saving and exporting": (
        'resfx.save(model, "save")', 'resfx.save(new, "somebody_elses")', 'resfx.save(new, "save", weights="nwe")',
        'resfx.load("no_such_folder", model)', 'resfx.load(model, "save")', 'resfx.load("save", new)',
        'resfx.load("save", text)', 'resfx.load("save")', 'resfx.export.to_onnx(new, ".")',
        'resfx.compare(model, new, json="save")', 'resfx.compare(model, new, x, backends=["onnx"])',
        'resfx.export.to_onnx(new, "model.onnx", dynamic=3)', 'new.report.draw("streams.png")',
        'resfx.split(new, at=["blocks.1", "blocks.1"])',
    ),
}  # fmt: skip


@contextlib.contextmanager
def names() -> Iterator[dict[str, Any]]:
    """What the lines of code know, in a folder of their own."""
    with torch.inference_mode():
        made_in_inference_mode = Net()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        os.chdir(folder)
        try:
            model, x = net(), batch()
            new = resfx.rewrite(model, "ddl", x)
            resfx.save(new, "save")
            Path("somebody_elses").mkdir()
            Path("somebody_elses", "recipe.json").write_text('{"learning_rate": 1}')
            yield {
                "resfx": resfx, "torch": torch, "model": model, "x": x, "new": new, "text": net(Text), "Net": Net,
                "ids": torch.arange(6).view(2, 3), "made_in_inference_mode": made_in_inference_mode, "Branch": Branch,
                "Numpy": Numpy, "ItsOwnGenerator": ItsOwnGenerator, "Collects": Collects,
            }  # fmt: skip
        finally:
            os.chdir(before)


def message(code: str, known: dict[str, Any]) -> tuple[str, str]:
    """The class of what a line raises, and its text: paths as seen from the project, lines of its files not counted.

    Raises:
        AssertionError: if it raises nothing, or no error of this library.
    """
    try:
        eval(code, dict(known))
    except resfx.errors.ResfxError as error:
        assert error.asked and error.found and error.try_, code
        text = str(error).replace(f"{ROOT}{os.sep}", "")
        return type(error).__name__, re.sub(r"\.py:\d+", ".py:...", text)
    except Exception as error:
        raise AssertionError(f"{code} raises {type(error).__name__}: {error}") from error
    raise AssertionError(f"{code} raises nothing")


def page() -> str:
    """The table as Markdown."""
    lines = [
        "# Mistakes of a first hour, and what each says", "",
        "Every error of this library derives from `resfx.errors.ResfxError` and says what was asked, what was found and"
        " what to try (`error.asked`, `error.found`, `error.try_`). Made by `python -m tests.errors`, which runs"
        f" each line (torch {release()}).",
    ]  # fmt: skip
    with names() as known:
        for part, codes in MISTAKES.items():
            lines += ["", f"## {part}", "", "| one writes | and reads |", "|---|---|"]
            for code in codes:
                kind, text = message(code, known)
                said = "<br>".join(escape(" ".join(line.split())) for line in text.splitlines())
                lines.append(f"| `{code}` | **{kind}** {said} |")
    return "\n".join(lines) + "\n"


def release() -> str:
    """The version of torch, as far as its messages depend on it."""
    return ".".join(torch.__version__.split(".")[:2])


def escape(text: str) -> str:
    """Text for a cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE}: {sum(map(len, MISTAKES.values()))} mistakes")
