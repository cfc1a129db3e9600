"""A quantity as a chart in the terms of plotly, for :func:`resfx.page`: depth downwards, tokens or entries across."""

from __future__ import annotations

from typing import Any

import numpy as np

from .quantity import Array, Quantity


def figure_of(quantity: Quantity) -> dict[str, Any]:
    """A heatmap: places by tokens; by the entries of one axis; or, for a matrix, places and its rows by its columns."""
    places, across = list(quantity.places), ""
    if not quantity.axes:
        values = quantity.by_token()
        values = values[:, None] if values.ndim == 1 else values
        columns, across = list(range(values.shape[1])), "token"
    else:
        values, columns, across = quantity.by_depth(), quantity.labels, quantity.axes[-1]
        rows = [" ".join(f"{a} {i}" for a, i in zip(quantity.axes[:-1], at, strict=True))
                for at in np.ndindex(values.shape[1:-1])]  # fmt: skip
        places = [f"{place} {row}".rstrip() for place in places for row in rows]
        values = values.reshape(len(places), values.shape[-1])
    chart = {
        "type": "heatmap",
        "x": columns,
        "y": places,
        "z": _plain(values),
        "colorscale": "Viridis",
        "hoverongaps": False,
    }
    layout = {
        "title": {"text": quantity.name}, "height": 140 + 18 * len(places), "margin": {"t": 10, "r": 20, "b": 50},
        "xaxis": {"title": {"text": across}}, "yaxis": {"autorange": "reversed", "automargin": True},
    }  # fmt: skip
    return {"data": [chart], "layout": layout}


def _plain(values: Array) -> list[list[float | None]]:
    """Numbers as JSON has them; nothing where a place has no such entry."""
    return [[float(v) if np.isfinite(v) else None for v in row] for row in values]
