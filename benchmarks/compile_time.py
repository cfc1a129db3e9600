"""Compile time of a training step against depth: ``python -m benchmarks.compile_time``.

A narrow decoder on a short input, plain and rewritten, compiled as one graph and block by block: what counts is the
number of operators. CPU seconds of the first forward and backward with an empty kernel cache, child processes included.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

import resfx
from resfx.comparison.measure import Inputs

from .common import start, write
from .models import VOCAB, Decoder, config_of, runner

METHODS = (
    "plain", "ddl", "short_swa, w=16", "attnres, blocks of 8", "attnres, blocks of 8, two phases", "attnres",
    "denseformer", "denseformer 4x5", "hyper_connections", "mhc",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark can vary."""
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--backends", nargs="+", default=["blocks", "whole"], choices=["blocks", "whole"])
    parser.add_argument("--depths", nargs="+", type=int, default=[12, 24])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=32)


def main() -> None:
    """One row per method, depth and way of compiling, beside the plain model's."""
    options = start(__doc__ or "", arguments)
    rows: list[dict[str, Any]] = []
    plain: dict[tuple[str, int], float] = {}
    for backend in options.backends:
        for depth in options.depths:
            for name in dict.fromkeys(["plain", *options.methods]):
                torch.manual_seed(0)
                torch._dynamo.reset()
                model = Decoder(depth, options.width).to(options.device)
                tokens = torch.randint(VOCAB, (1, options.length), device=options.device)
                if name != "plain":
                    model = resfx.rewrite(model, config_of(name, options.width), args=(tokens,), check=False)
                row: dict[str, Any] = {"group": backend, "depth": depth, "case": name, "baseline": "plain"}
                try:
                    spent = runner(model, Inputs((tokens,), {}), backend, "train")[1]
                except Exception as error:
                    rows.append(row | {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"})
                    continue
                base = plain.setdefault((backend, depth), spent)
                rows.append(row | {"first_call_s": spent, "ratio": spent / base})
                print(
                    f"{backend:7s} {depth:3d} {name:24s} {spent:7.1f} s {spent / base:6.2f}",
                    file=sys.stderr,
                    flush=True,
                )
    text = (__doc__ or "").split("\n\n", 1)[1]
    head = f"{' '.join(text.split())} Width {options.width}, {options.length} tokens."
    write("compile", rows, options, head, ("depth", "case", "first_call_s", "ratio"), clock="CPU time of all processes")


if __name__ == "__main__":
    main()
