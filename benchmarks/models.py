"""Whole models before and after a rewrite: ``python -m benchmarks.models``.

A decoder of 12 blocks with random weights, each method at its preserving start, timed by :func:`resfx.compare`:
forward and training step, eager and (``--backends eager compiled``) compiled, peak memory beside time.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import nn

import resfx
from resfx.measure import quartiles
from resfx.ops.method import methods

from .common import start, write

VOCAB = 512


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Causal self-attention."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm_1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))


class Decoder(nn.Module):
    """A small language model that returns its loss."""

    def __init__(self, depth: int, width: int, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), tokens.flatten())


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark can vary."""
    parser.add_argument("--methods", nargs="+", default=None, help="names of methods; all by default")
    parser.add_argument("--backends", nargs="+", default=["eager"])
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)


def rows_of(group: str, result: resfx.Comparison, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """A comparison as rows of a result file: before and after for each backend and mode."""
    rows: list[dict[str, Any]] = []
    for row in result.rows:
        here = {"group": group, **facts, "backend": row.backend, "mode": row.mode}
        if row.reason:
            rows.append({**here, "case": "both", "failed": row.reason})
        for case, taken in (("before", row.before), ("after", row.after)):
            if taken is None or row.before is None:
                continue
            low, middle, high = quartiles(taken.samples)
            memory, least = taken.memory, row.before.memory
            rows.append({
                **here, "case": case, "baseline": "before", "ratio": middle / row.before.median,
                "memory_ratio": memory / least if memory and least else None,
                "median_ms": middle * 1e3, "quartiles_ms": [low * 1e3, high * 1e3], "first_call_s": taken.first,
                "peak_MiB": None if memory is None else memory / 2**20,
                "parameters": result.parameters[case == "after"], "rounds": len(taken.samples),
            })  # fmt: skip
    return rows


def main() -> None:
    """Compare the plain model with each method's."""
    options = start(__doc__ or "", arguments)
    rows: list[dict[str, Any]] = []
    for name in options.methods or methods():
        torch.manual_seed(0)
        plain = Decoder(options.depth, options.width).to(options.device)
        tokens = torch.randint(VOCAB, (1, options.length), device=options.device)
        facts = {"shape": [1, options.length, options.width], "depth": options.depth, "dtype": "float32"}
        print(name, file=sys.stderr, flush=True)
        try:
            new = resfx.rewrite(plain, name, args=(tokens,))
        except resfx.errors.ResfxError as error:
            rows.append({"group": name, **facts, "case": "after", "failed": f"{type(error).__name__}: {error.asked}"})
            continue
        result = resfx.compare(plain, new, args=(tokens,), backends=options.backends, repeats=options.rounds)
        rows += rows_of(name, result, facts)
    head = (
        "One call of a decoder with random weights, before and after the rewrite, the two in turns. `train` is forward,"
        " loss and backward. `peak_MiB` is what a step allocates at its highest, parameters not counted. No floor is"
        " given: a model is not one operator."
    )
    columns = ("depth", "shape", "backend", "mode", "case", "ratio", "peak_MiB", "median_ms", "quartiles_ms",
               "first_call_s", "parameters")  # fmt: skip
    write(
        "-".join(["models", *(b for b in options.backends if b != "eager")]),
        rows,
        options,
        head,
        columns,
        clock="wall time",
    )


if __name__ == "__main__":
    main()
