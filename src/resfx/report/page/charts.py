"""A comparison as charts, in the terms of plotly: before beside after."""

from __future__ import annotations

from typing import Any

from resfx.comparison.measure import quartiles
from resfx.comparison.result import Comparison, Row, verdict

SIDES = {"before": "#9aa5b1", "after": "#2f6fde"}


def charts_of(comparison: Comparison | None) -> list[dict[str, Any]]:
    """Latency, and memory where it was counted; nothing where no row has figures."""
    rows = [r for r in comparison.rows if r.before and r.after] if comparison else []
    charts = [_chart("Milliseconds per step (median, quartiles)", rows, _latency)] if rows else []
    if any(r.after.memory is not None for r in rows if r.after):
        charts.append(_chart("Peak MiB of a step", rows, _memory))
    return charts


def _chart(title: str, rows: list[Row], bars: Any) -> dict[str, Any]:
    names = [f"{r.backend}, {r.mode}" for r in rows]
    data = [
        {"type": "bar", "orientation": "h", "name": side, "y": names, "marker": {"color": colour}, **bars(rows, side)}
        for side, colour in SIDES.items()
    ]
    layout = {
        "barmode": "group",
        "height": 120 + 70 * len(rows),
        "margin": {"t": 10, "r": 20, "b": 40},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "legend": {"orientation": "h", "traceorder": "normal"},
    }
    return {"title": title, "data": data, "layout": layout}


def _latency(rows: list[Row], side: str) -> dict[str, Any]:
    spans = [[1e3 * value for value in quartiles(getattr(r, side).samples)] for r in rows]
    error = {"type": "data", "symmetric": False, "array": [high - mid for _, mid, high in spans],
             "arrayminus": [mid - low for low, mid, _ in spans], "thickness": 1}  # fmt: skip
    said = [verdict(r) if side == "after" else "" for r in rows]
    return {"x": [mid for _, mid, _ in spans], "error_x": error, "text": said, "textposition": "inside"}


def _memory(rows: list[Row], side: str) -> dict[str, Any]:
    held = [getattr(r, side).memory for r in rows]
    return {"x": [None if m is None else m / 2**20 for m in held]}
