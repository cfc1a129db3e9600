"""The bars of a comparison."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from resfx.errors import require

from .measure import quartiles

if TYPE_CHECKING:
    from .result import Comparison, Row

GREY, BLUE = "#9aa5b1", "#2f6fde"


def plot_comparison(result: Comparison, path: str | os.PathLike[str]) -> None:
    """Latency (medians, quartiles as whiskers) and peak memory, before beside after."""
    figure_module = require("matplotlib.figure", "bench", "a plot")
    rows = [r for r in result.rows if r.before and r.after]
    figure = figure_module.Figure(figsize=(9, 1.6 + 0.9 * max(len(rows), 1)), layout="constrained")
    latency, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    figure.suptitle(f"{result.names[0]}  \N{RIGHTWARDS ARROW}  {result.names[1]}", fontsize=11)
    for offset, side, colour in ((-0.19, "before", GREY), (0.19, "after", BLUE)):
        places = [i + offset for i in range(len(rows))]
        measured = [getattr(r, side) for r in rows]
        spans = [quartiles(m.samples) for m in measured]
        middles = [1e3 * mid for _, mid, _ in spans]
        whiskers = [[1e3 * (mid - low) for low, mid, _ in spans], [1e3 * (high - mid) for _, mid, high in spans]]
        latency.barh(places, middles, 0.36, xerr=whiskers if rows else None, color=colour, label=side, capsize=2,
                     error_kw={"elinewidth": 1, "ecolor": "#333"})  # fmt: skip
        memory.barh(places, [(m.memory or 0) / 2**20 for m in measured], 0.36, color=colour)
    for i, row in enumerate(rows):
        _annotate(latency, i, row)
    latency.set_yticks(range(len(rows)), [f"{r.backend}\n{r.mode}" for r in rows])
    latency.invert_yaxis()
    latency.margins(x=0.3)
    latency.set_xlabel("milliseconds per step (median, quartiles)")
    memory.set_xlabel("peak MiB of a step")
    if rows:
        latency.legend(frameon=False, fontsize=8)
    for axes in (latency, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(left=0)
    figure.savefig(path, dpi=150)


def _annotate(axes: object, place: int, row: Row) -> None:
    assert row.before and row.after
    end = 1e3 * max(quartiles(row.before.samples)[2], quartiles(row.after.samples)[2])
    text = f"x {row.ratio:.2f}" if row.differs else "within noise"
    axes.annotate(text, (end, place), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)  # type: ignore[attr-defined]
