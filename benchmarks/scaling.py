"""How cost grows, with fitted exponents beside what the mathematics says: ``python -m benchmarks.scaling``.

Short windows over the length, ``O(T w d)``; a depth read over a fixed number of sources over the length,
``O(T K d)`` for each of L reads; reads over all earlier sublayers over the depth, ``O(T L^2 d)``; full causal attention
over the length for comparison, ``O(T^2 d)``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resfx.comparison.measure import Runner, peak_memory, quartiles
from resfx.ops.scores import rms_scores
from resfx.ops.weighted_sum.formula import weighted_sum
from resfx.ops.window.formula import windowed_attention

from .common import Case, compiled, measure, start, steps, write


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    xs, ys = [math.log(s) for s in sizes], [math.log(t) for t in times]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def window(size: int, width: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Attention over the last ``width`` of ``size`` positions."""
    return lambda q, k, v: windowed_attention(q, k, v, width), [torch.randn(1, 4, size, 64) for _ in range(3)]


def window_compiled(size: int, width: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """:func:`window`, compiled for the size."""
    call, inputs = window(size, width)
    return compiled(call), inputs


def full(size: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Causal attention over all positions."""
    call = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return call, [torch.randn(1, 4, size, 64) for _ in range(3)]


def reads(depth: int, size: int, sources: int | None) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """``depth`` reads, each over the last ``sources`` states before it, or over all."""

    def call(query: Tensor, *states: Tensor) -> Tensor:
        total = torch.zeros_like(states[0])
        for j in range(1, depth + 1):
            seen = states[: j + 1] if sources is None else states[max(0, j + 1 - sources) : j + 1]
            total = total + weighted_sum(seen, rms_scores(seen, query, 1e-6).softmax(-1))
        return total

    return call, [torch.randn(256), *(torch.randn(size, 256) for _ in range(depth + 1))]


LENGTHS = (1024, 2048, 4096, 8192)
SERIES: dict[str, tuple[str, str, float, tuple[int, ...], Callable[[int], Any]]] = {
    "windowed attention, w = 8, over the length": ("O(T w d)", "length", 1, LENGTHS, lambda t: window(t, 8)),
    "windowed attention, w = 8, compiled, over the length": (
        "O(T w d)", "length", 1, LENGTHS, lambda t: window_compiled(t, 8)),
    "windowed attention over the window": ("O(T w d)", "window", 1, (32, 64, 128, 256), lambda w: window(4096, w)),
    "full causal attention over the length": ("O(T^2 d)", "length", 2, (1024, 2048, 4096), full),
    "12 reads of K = 4 over the length": ("O(T K L d)", "length", 1, (256, 512, 1024, 2048), lambda t: reads(12, t, 4)),
    "reads of K = 4 over the depth": ("O(T K L d)", "depth", 1, (6, 12, 24, 48), lambda n: reads(n, 256, 4)),
    "reads of all states over the depth": ("O(T L^2 d)", "depth", 2, (6, 12, 24, 48), lambda n: reads(n, 256, None)),
}  # fmt: skip


def main() -> None:
    """Measure each series, all its sizes in turns, and fit."""
    options = start(__doc__ or "")
    rows: list[dict[str, Any]] = []
    for title, (law, axis, expected, sizes, make) in SERIES.items():
        for mode in ("forward", "training"):
            print(title, mode, file=sys.stderr, flush=True)
            series = [Case(str(size), steps(call, inputs, mode)) for size in sizes for call, inputs in [make(size)]]
            measure(series, options)
            times = [quartiles(c.samples) for c in series]
            fitted = exponent(sizes, [t[1] for t in times])
            peaks = [peak_memory(Runner(c.step), torch.device(options.device)) / 2**20 for c in series]
            grows = exponent(sizes, peaks)
            for size, peak, (low, middle, high) in zip(sizes, peaks, times, strict=True):
                rows.append({
                    "group": title, "law": law, "axis": axis, "size": size, "mode": mode, "dtype": "float32",
                    "ratio": middle / times[0][1], "median_ms": middle * 1e3,
                    "quartiles_ms": [low * 1e3, high * 1e3], "fitted": fitted, "expected": expected,
                    "peak_MiB": peak, "memory_fitted": grows,
                })  # fmt: skip
            print(f"  exponent {fitted:.2f}, expected {expected}, memory {grows:.2f}", file=sys.stderr, flush=True)
    head = (
        "Operators in eager mode, or compiled where the title says so. `fitted` is the exponent of the least-squares"
        " line through all sizes of a series, `expected`"
        " the one of its law; small sizes carry fixed costs, which pull the fit below the law. `ratio` is to the"
        " smallest size. `peak_MiB` is what one call allocates at its highest, `memory_fitted` its exponent."
    )
    columns = ("law", "axis", "size", "mode", "ratio", "fitted", "expected", "peak_MiB", "memory_fitted",
               "median_ms", "quartiles_ms")  # fmt: skip
    write("scaling", rows, options, head, columns)


if __name__ == "__main__":
    main()
