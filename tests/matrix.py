"""Every method on every host through every lowering, as a table: ``python -m tests.matrix`` writes ``docs/matrix.md``.

A cell is a word of what held, or the reason why the method leaves the host alone. Nothing is asserted here beyond
what is written: the table is the result. Rows that a run leaves out (``--methods``, ``--hosts``, ``--missing``) stay as
the page has them.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from hosts import BY_NAME, Host, tokens
from hosts.made import randomise

import resfx
from benchmarks.forms import configs
from resfx.methods.base import Method
from resfx.passes.check import tensors_of

HOSTS = ("gpt2", "llama", "bert", "vit", "gpt_neox", "qwen3", "t5")
CHECKS = ("exact f32", "exact bf16", "trains", "compiles", "ONNX", "save", "generate")


def close(a: Any, b: Any, tolerance: float) -> bool:
    left, right = tensors_of(a), tensors_of(b)
    return len(left) == len(right) > 0 and all(
        torch.allclose(x.float(), y.float(), rtol=tolerance, atol=tolerance) for x, y in zip(left, right, strict=True)
    )


def equal(a: Any, b: Any) -> bool:
    left, right = tensors_of(a), tensors_of(b)
    return len(left) == len(right) > 0 and all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def projection(output: Any) -> torch.Tensor:
    terms = [t.float() for t in tensors_of(output) if t.requires_grad]
    return sum((t * torch.cos(torch.arange(t.numel()) + 1.0).view(t.shape)).square().mean() for t in terms)


def exact(host: Host, method: Method, dtype: torch.dtype) -> str:
    model = host.make().to(dtype)
    inputs = {
        k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in host.inputs(2, 7).items()
    }
    new = resfx.rewrite(model, method, kwargs=inputs, check=False)
    if equal(model(**inputs), new(**inputs)):
        return "bit"
    return "close" if close(model(**inputs), new(**inputs), 1e-5 if dtype is torch.float32 else 2e-2) else "NO"


def trains(host: Host, new: Any, inputs: dict[str, Any]) -> str:
    twin = copy.deepcopy(new)
    optimizer = torch.optim.Adam(list(twin.new_parameters().values()), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = projection(twin(**inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return "yes" if losses[-1] < losses[0] else "NO"


def compiles(host: Host, new: Any, inputs: dict[str, Any]) -> str:
    torch._dynamo.reset()
    compiled = torch.compile(new, backend="aot_eager", fullgraph=True, dynamic=True)
    return "yes" if close(compiled(**inputs), new(**inputs), 1e-4) else "NO"


def onnx(host: Host, new: Any, inputs: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        resfx.export.to_onnx(new, Path(folder) / "model.onnx", kwargs=inputs)  # raises where a runtime disagrees
    return "yes"


def save(host: Host, new: Any, inputs: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        resfx.save(new, Path(folder) / "save")
        again = resfx.load(Path(folder) / "save", host.make(), kwargs=inputs)
    return "yes" if equal(new(**inputs), again(**inputs)) else "NO"


def generate(host: Host, new: Any, inputs: dict[str, Any]) -> str:
    if not host.causal:
        return "-"
    ids = tokens(2, 6)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    cached, whole = (new.generate(ids, use_cache=c, **options) for c in (True, False))
    return "yes" if torch.equal(cached, whole) else "NO"


def row(host: Host, method: Method) -> list[str]:
    """One host and one method; the first failure of a kind is its word."""
    torch.manual_seed(0)
    inputs = host.inputs(2, 7)
    try:
        new = resfx.rewrite(host.make(), method, kwargs=inputs)
    except resfx.errors.NoSitesError as refusal:
        return [f"left alone: {refusal.found}"]
    moved = copy.deepcopy(new)
    randomise(moved)
    checks: list[Callable[[], str]] = [
        lambda: exact(host, method, torch.float32), lambda: exact(host, method, torch.bfloat16),
        lambda: trains(host, new, inputs), lambda: compiles(host, moved, inputs), lambda: onnx(host, moved, inputs),
        lambda: save(host, moved, inputs), lambda: generate(host, moved, inputs),
    ]  # fmt: skip
    return [attempt(check) for check in checks]


def attempt(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        text = str(getattr(error, "found", "") or error).strip().splitlines()
        return f"NO: {type(error).__name__}: {(text[0] if text else '')[:70]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--hosts", nargs="*", default=HOSTS)
    parser.add_argument("--missing", action="store_true", help="only the rows that the page lacks")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/matrix.md"))
    options = parser.parse_args()
    chosen = [label for label in configs() if not options.methods or label in options.methods]
    done = rows_of(options.out.read_text()) if options.out.exists() else {}
    pairs = [(label, host) for host in options.hosts for label in chosen]
    pairs = [pair for pair in pairs if not (options.missing and pair in done)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=spawn) as pool:
        futures = {pool.submit(cells, *pair): pair for pair in pairs}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            print(futures[future], done[futures[future]], flush=True)
            options.out.write_text(page(sorted(done.items())))


def cells(label: str, host: str) -> list[str]:
    """One row, in a process of its own: whatever goes wrong is a word in it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return attempt_row(BY_NAME[host], configs()[label])


def page(rows: list[tuple[tuple[str, str], list[str]]]) -> str:
    """The table as it stands."""
    words = [word for _, found in rows for word in found if word != "-"]
    held = sum(not word.startswith("NO") for word in words)
    lines = [
        "# Methods x hosts x lowerings", "",
        "Made by `make matrix`. `bit`: equal bit for bit at the preserving start. Other columns run with the",
        "new parameters moved off it: 20 training steps lower a loss, `torch.compile` (aot_eager, whole graph,",
        "dynamic sizes) and ONNX Runtime agree with eager, a save loads, cached and whole generation agree.",
        "A dash was not run: the host does not generate, as an encoder or an encoder-decoder here.",
        "`attnres, blocks`, its two phases and `attnres, normalized` have `block=2`.", "",
        f"{held} of {len(words)} cells that were run hold.", "",
        "| method | host | " + " | ".join(CHECKS) + " |", "|---" * (2 + len(CHECKS)) + "|",
    ]  # fmt: skip
    for (label, host), found in rows:
        full = found + [""] * (len(CHECKS) - len(found))
        lines.append(f"| {label} | {host} | " + " | ".join(w.replace("|", "/") for w in full) + " |")
    return "\n".join(lines) + "\n"


def rows_of(text: str) -> dict[tuple[str, str], list[str]]:
    """What :func:`page` wrote, of the methods and hosts that there still are."""
    table = [[word.strip() for word in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    known, found = configs(), {}
    for label, host, *words in table[2:]:
        if label in known and host in BY_NAME:
            found[label, host] = [word for word in words if word]
    return found


def attempt_row(host: Host, method: Method) -> list[str]:
    try:
        return row(host, method)
    except Exception as error:
        return [f"NO: {type(error).__name__}: {str(error).splitlines()[0][:90]}"]


if __name__ == "__main__":
    main()
