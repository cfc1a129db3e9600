"""What a widened stream costs, beside what its authors published: ``python -m benchmarks.wide``.

A decoder of 6 blocks with random weights, each method with four channels at its preserving start, timed by
:func:`resfx.compare`: forward and training step, peak memory beside time.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

import resfx
from resfx import DDL, MHC, HyperConnections
from resfx.comparison.measure import quartiles

from .common import start, write
from .models import VOCAB, Decoder

CC, TC = DDL(value_channels=4, embed_conv=False), DDL(value_channels=4, compress="token", embed_conv=False)
EC = DDL(value_channels=4)
DDL_TABLE = "DDL (2601.00417) tables 3 to 5, 124M, tokens/s inverted, fused kernels"
# Name to the method, then published step time and memory over the plain model's, and where they are from.
FORMS: dict[str, tuple[resfx.Method, str, str, str]] = {
    "HC, n = 4": (HyperConnections(n=4), "FLOPs +0.2 %", "1.26 training", "HC (2409.19606), OLMo-1B"),
    "mHC, n = 4": (
        MHC(n=4), "1.067 training; 1.53 to 1.66 training, not fused", "not given",
        "mHC (2512.24880), 27B, fused and recomputed; the other from a third party on eight H100",
    ),
    "mHC, n = 4, rounds alone": (MHC(n=4, sinkhorn_newton=0), "as above", "as above", "the paper's own projection"),
    "DDL CC without EC, d_v = 4": (
        CC, "1.48 training, 1.75 inference (not optimised)", "1.18 training", "the same tables"
    ),
    "DDL CC, d_v = 4": (EC, "1.30 training, 1.50 inference", "1.05 training", DDL_TABLE),
    "DDL TC without EC, d_v = 4": (
        TC, "2.24 training, 2.65 inference (not optimised)", "1.31 training", "the same tables"
    ),
    "DDL TC, d_v = 4": (
        DDL(value_channels=4, compress="token"), "1.93 training, 2.11 inference", "1.15 training", DDL_TABLE
    ),
    "DDL CC, write only, d_v = 4": (
        DDL(value_channels=4, write_only=True), "not given", "not given", "a control that the paper says is missing"
    ),
}  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark can vary."""
    parser.add_argument("--backends", nargs="+", default=["eager"])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), help="of the forms below; all by default")
    parser.add_argument("--depth", type=int, default=6)
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
    """Compare the plain decoder with each form's."""
    options = start(__doc__ or "", arguments)
    rows: list[dict[str, Any]] = []
    for name in options.forms:
        method, time, memory, source = FORMS[name]
        print(name, file=sys.stderr, flush=True)
        torch.manual_seed(0)
        plain = Decoder(options.depth, options.width).to(options.device)
        tokens = torch.randint(VOCAB, (1, options.length), device=options.device)
        facts = {"shape": [1, options.length, options.width], "depth": options.depth, "dtype": "float32", "form": name}
        new = resfx.rewrite(plain, method, args=(tokens,))
        result = resfx.compare(plain, new, args=(tokens,), backends=options.backends, repeats=options.rounds)
        published = {"published_time": time, "published_memory": memory, "source": source}
        for row in rows_of("", result, facts):
            row["group"] = f"{row['backend']}, {row['mode']}"
            if row["case"] != "before":
                rows.append({**row, **published})
    head = (
        "A decoder of 6 blocks with random weights, each form over the plain model, the two in turns. `train` is"
        " forward, loss and backward. `memory_ratio` is of what a step allocates at its highest, `peak_MiB`,"
        " parameters not counted. The published figures are of other models on other machines, several times wider"
        " and deeper and on GPUs, where a branch outweighs what is done to the state between branches more than here."
    )
    columns = ("form", "ratio", "memory_ratio", "published_time", "published_memory", "source", "peak_MiB",
               "median_ms", "quartiles_ms", "parameters")  # fmt: skip
    rows.sort(key=lambda row: (row["group"], options.forms.index(row["form"])))
    name = "-".join(["wide", *(b for b in options.backends if b != "eager")])
    write(name, rows, options, head, columns, clock="wall time")


if __name__ == "__main__":
    main()
