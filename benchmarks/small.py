"""Small calls, where launches take the time and not memory: ``python -m benchmarks.small``.

A rewritten model with random weights beside the plain one, eager, no gradients: one module call, finding the code for
a call, a forward pass of 16 tokens, ``generate()``, and 24 layers of width 16, which are launches only. Each with plain
torch and with the C++ kernels (``python -m resfx kernels``); ``--parts`` takes some of it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import resfx
from resfx.export import build_kernels
from resfx.ops import native

from .common import Case, measure, quartiles, start, write

PARTS = ("site", "variant", "forward", "generate", "launches", "training")
METHODS: dict[str, Any] = {
    "ddl": resfx.DDL(), "attnres, blocks of 8": resfx.AttnRes(block=8), "mhc": resfx.MHC(),
    "short_swa, d_a=d/8": resfx.ShortSWA(window=16, heads=2, head_dim=16), "denseformer": resfx.DenseFormer(),
}  # fmt: skip
WHOLE = {"ddl": 1.15, "attnres, blocks of 8": 1.15, "mhc": 1.4}
GOALS: dict[str, dict[str, float]] = {"forward": WHOLE, "generate": WHOLE, "launches": dict.fromkeys(WHOLE, 1.4)}


@contextlib.contextmanager
def kernels(library: Path | None) -> Iterator[None]:
    """Inside, small calls run these kernels; ``None``: plain torch, as in every benchmark outside."""
    find, native.built_kernels = native.built_kernels, lambda: library
    os.environ["RESFX_NATIVE"] = "1"
    native._library.cache_clear()
    try:
        yield
    finally:
        native.built_kernels = find
        os.environ["RESFX_NATIVE"] = "0"
        native._library.cache_clear()


def decoder(layers: int, width: int, heads: int) -> nn.Module:
    """A Llama with random weights and its own defaults but for its size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=width * 43 // 16,
    )).eval()  # fmt: skip


def step(call: Callable[[], Any], times: int, library: Path | None, grad: bool = False) -> Callable[[], Any]:
    """So many calls that a clock sees them, with the kernels or without."""

    def run() -> None:
        with kernels(library), torch.set_grad_enabled(grad):
            for _ in range(times):
                call()

    return run


def compare(
    title: str, plain: Any, ways: dict[str, Any], times: int, library: Path, options: Any, grad: bool = False,
    part: str = "",
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of a group: the plain call first, which ratios are taken to; then each without and with kernels."""
    cases = [Case("plain", step(plain, times, None, grad))]
    for name, call in ways.items():
        cases += [Case(name, step(call, times, None, grad)), Case(f"{name}, kernels", step(call, times, library, grad))]
    measure(cases, options)
    base = quartiles(cases[0].samples)[1]
    rows = []
    for case in cases:
        low, middle, high = quartiles(case.samples)
        rows.append({
            "group": title, "case": case.name, "ratio": middle / base, "us": middle / times * 1e6,
            "quartiles_us": [low / times * 1e6, high / times * 1e6],
            "goal": GOALS.get(part, {}).get(case.name.removesuffix(", kernels")),
        })  # fmt: skip
        print(f"{title:22s} {case.name:34s} {rows[-1]['us']:10.1f} us {rows[-1]['ratio']:7.2f}", flush=True)
    return rows


def whole(part: str, library: Path, options: Any) -> list[dict[str, Any]]:
    """Calls of whole models."""
    model = decoder(24, 16, 2) if part == "launches" else decoder(12, 256, 8)
    ids = torch.randint(3, 500, (1, 16))
    calls: dict[str, Callable[[Any], Any]] = {
        "generate": lambda m: m.generate(ids, max_new_tokens=32, do_sample=False, pad_token_id=0),
        "training": lambda m: _trained(m, ids),
    }
    run = calls.get(part, lambda m: m(ids))
    rows = []
    for name, method in METHODS.items():
        new = resfx.rewrite(model, method, args=(ids,), check=False)
        times = 1 if part in calls else 3
        rows += compare(TITLES[part], lambda: run(model), {name: lambda n=new: run(n)}, times, library, options,
                        part == "training", part)  # fmt: skip
    return rows


def _trained(model: Any, ids: torch.Tensor) -> None:
    model(ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()


def pieces(part: str, library: Path, options: Any) -> list[dict[str, Any]]:
    """One module call of each method, or finding the code of a call; beside a plain add of such tensors."""
    model, ids = decoder(4, 256, 8), torch.randint(3, 500, (1, 4))
    x, y = torch.randn(2, 1, 4, 256).unbind()
    ways: dict[str, Any] = {}
    for name, method in METHODS.items():
        new = resfx.rewrite(model, method, args=(ids,), check=False)
        if part == "variant":
            unit, args, kwargs = next(c for c in _seen(new, ids, in_units) if "resfx" not in c[2])
            ways[name] = lambda u=unit, a=args, k=kwargs: u._resfx_unit.code_for(u, a, k)
        else:
            for module, args, kwargs in {type(c[0]): c for c in _seen(new, ids, in_sites)}.values():
                ways[f"{name}: {type(module).__name__}"] = lambda m=module, a=args, k=kwargs: m(*a, **k)
    return compare(TITLES[part], lambda: x + y, ways, 100, library, options)


def in_units(module: nn.Module) -> bool:
    """Whether a module runs generated code."""
    return "_resfx_unit" in vars(module)


def in_sites(module: nn.Module) -> bool:
    """Whether a module is what generated code calls, not a part of that."""
    return type(module).__name__ in ("DeltaSite", "AttnResRead", "ManifoldRead", "ManifoldWrite", "ShortWindow",
                                     "DenseFormerRead")  # fmt: skip


def _seen(new: Any, ids: torch.Tensor, which: Callable[[nn.Module], bool]) -> list[tuple[Any, tuple, dict]]:
    """The calls of some modules in a forward pass."""
    found: list[tuple[Any, tuple, dict]] = []
    handles = [m.register_forward_pre_hook(lambda m, a, k: found.append((m, a, k)), with_kwargs=True)
               for m in new.modules() if which(m)]  # fmt: skip
    with torch.no_grad():
        new(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


TITLES = {
    "site": "one module call, [1, 4, 256]", "variant": "finding the code of a call",
    "forward": "forward, 16 tokens", "generate": "generate(), 32 tokens", "launches": "24 layers of width 16",
    "training": "training step, 16 tokens",
}  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))


def main() -> None:
    options = start(__doc__ or "", arguments)
    with tempfile.TemporaryDirectory() as folder:
        library = build_kernels(Path(folder) / "kernels.so")
        rows = []
        for part in options.parts:
            rows += (pieces if part in ("site", "variant") else whole)(part, library, options)
    head = (
        "Calls in which launches take the time: eager mode, no gradients but for the training step. `ratio` is to the"
        " plain model's call, or to one plain add of the same tensors; `kernels`: with the C++ kernels that"
        " `python -m resfx kernels` builds. `goal`: the ratio the library aims at."
    )
    write("small", rows, options, head, ("case", "ratio", "goal", "us", "quartiles_us"))


if __name__ == "__main__":
    main()
