"""Decoding with a cache of fixed size, eager and compiled: ``python -m benchmarks.decode``.

A decoder with random weights, plain and rewritten, one step a token: ``transformers.StaticCache``, batch 1, no
gradients. Compiled, the step is one graph (``fullgraph=True``), compiled by Inductor once the two kinds of calls (a
prefill, a token) were made; ``graphs`` is how many that were in all of the tokens.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

import resfx
from resfx.export import build_kernels

from .common import Case, measure, quartiles, start, write
from .small import METHODS, decoder, kernels

TOKENS = 64
"""In which a compiled step is to compile once."""


class Decoding:
    """Tokens one after the other, each the likeliest behind those before it.

    Args:
        model: plain or rewritten.
        prompt: ``(1, positions)``.
        compiled: whether the step is.
        room: positions of the cache.
    """

    def __init__(self, model: nn.Module, prompt: torch.Tensor, compiled: bool, room: int) -> None:
        from transformers import StaticCache

        name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
        config: Any = model.config
        self.cache = {name: StaticCache(config=config, max_cache_len=room)}
        at = torch.arange(prompt.shape[1])[None]
        self.token, self.at = prompt[:, -1:], at[:, -1:] + 1
        self.step: Callable[..., Any] = model
        self(prompt, at)
        self.token = self(self.token, self.at)  # a tensor like all that follow
        self.at = self.at + 1
        if compiled:
            torch._dynamo.reset()
            self.step = torch.compile(model, fullgraph=True)

    def __call__(self, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The token behind ``ids``, which stand at positions ``at``."""
        return self.step(ids, position_ids=at, **self.cache).logits[:, -1:].argmax(-1)

    def run(self, tokens: int) -> None:
        """So many more tokens."""
        for _ in range(tokens):
            self.token = self(self.token, self.at)
            self.at = self.at + 1


def timed(runs: dict[str, Callable[[], Any]], options: Any, graphs: dict[str, int]) -> list[dict[str, Any]]:
    """Rows of one group, the plain model's first."""
    tokens = options.tokens
    cases = [Case(name, run) for name, run in runs.items()]
    measure(cases, options)
    rows = []
    for case in cases:
        if case.failed:
            raise RuntimeError(f"{case.name}: {case.failed}")
        low, middle, high = quartiles(case.samples)
        rows.append({
            "case": case.name, "ratio": middle / quartiles(cases[0].samples)[1], "ms": middle / tokens * 1e3,
            "quartiles_ms": [low / tokens * 1e3, high / tokens * 1e3], "graphs": graphs.get(case.name),
        })  # fmt: skip
        print(f"{case.name:36s} {rows[-1]['ms']:8.2f} ms a token {rows[-1]['ratio']:6.2f}", flush=True)
    return rows


@torch.no_grad()
def compare(name: str, model: nn.Module, new: nn.Module, library: Path | None, options: Any) -> list[dict[str, Any]]:
    """Plain and rewritten, eager and compiled."""
    prompt, rows = torch.randint(3, 500, (1, 16)), []
    room = prompt.shape[1] + 2 + TOKENS + options.tokens * (options.rounds + 2)
    for way in ("eager", "compiled"):
        runs: dict[str, Callable[[], Any]] = {}
        graphs: dict[str, int] = {}
        for who, module in (("plain", model), (name, new)):
            decoding = Decoding(module, prompt, way == "compiled", room)
            if way == "compiled":
                before = counters["stats"]["unique_graphs"]
                decoding.run(TOKENS)
                graphs[who] = counters["stats"]["unique_graphs"] - before
            runs[who] = functools.partial(decoding.run, options.tokens)
        if library is not None and way == "eager":
            decoding = Decoding(new, prompt, False, room)
            runs[f"{name}, kernels"] = functools.partial(_with, library, decoding, options.tokens)
        rows += [{"group": f"{name}, {way}", **row} for row in timed(runs, options, graphs)]
    return rows


def _with(library: Path, decoding: Decoding, tokens: int) -> None:
    with kernels(library):
        decoding.run(tokens)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=16, help="of one measured call (default 16)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))


def main() -> None:
    options = start(__doc__ or "", arguments)
    with tempfile.TemporaryDirectory() as folder:
        library = build_kernels(Path(folder) / "kernels.so")
        rows = []
        for name in options.methods:
            model, ids = decoder(options.layers, 256, 8), torch.randint(3, 500, (1, 16))
            new = resfx.rewrite(model, METHODS[name], args=(ids,), check=False)
            rows += compare(name, model, new, library, options)
    head = (
        f"Decoding a token with a static cache, {options.layers} layers, d = 256, batch 1, no gradients: milliseconds a"
        " token, and the ratio to the plain model run the same way. `kernels`: with the C++ kernels that"
        f" `python -m resfx kernels` builds. `graphs`: what was compiled in the first {TOKENS} tokens of a step that"
        " is one graph, `fullgraph=True`."
    )
    write("decode", rows, options, head, ("case", "ratio", "ms", "quartiles_ms", "graphs"))


if __name__ == "__main__":
    main()
