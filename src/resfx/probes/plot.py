"""The pictures of a probe: curves, a map over depth, matrices side by side. They know arrays, nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from resfx.errors import require

BLUE, MAP, BOTH_SIGNS = "#2f6fde", "viridis", "RdBu_r"
LINES = 40  # more places than this are not all named at an axis


def plot_curves(
    path: str | os.PathLike[str], title: str, places: Sequence[str], means: np.ndarray, tokens: np.ndarray
) -> None:
    """One number per place: its mean over depth, and beside it, where it has tokens, over depth and tokens.

    Args:
        means: ``(places,)``.
        tokens: ``(places, tokens)``.
    """
    many = tokens.shape[1] > 1
    figure = _figure((8.0 if many else 4.2, _height(places)))
    left, *right = figure.subplots(1, 1 + many, squeeze=False, sharey=True)[0]
    left.plot(means, range(len(places)), "o-", color=BLUE, markersize=3, linewidth=1)
    if many:
        low, high = np.quantile(tokens, (0.1, 0.9), axis=1)
        left.fill_betweenx(range(len(places)), low, high, color=BLUE, alpha=0.15, linewidth=0)
        _image(figure, right[0], tokens, [])
        right[0].set_xlabel("token")
    left.set_title(f"{title}: mean" + (", band: 10 to 90 % of the positions" if many else ""), fontsize=9)
    _name_places(left, places)
    figure.savefig(path, dpi=110)


def plot_map(
    path: str | os.PathLike[str], title: str, places: Sequence[str], means: np.ndarray, labels: Sequence[int], axis: str
) -> None:
    """A row of numbers per place, ``means (places, entries)``."""
    figure = _figure((3.2 + 0.28 * min(len(labels), 20), _height(places)))
    axes = figure.subplots()
    _image(figure, axes, means, labels)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(axis)
    _name_places(axes, places)
    figure.savefig(path, dpi=110)


def plot_matrices(
    path: str | os.PathLike[str], title: str, places: Sequence[str], means: np.ndarray, labels: Sequence[int],
    axes_names: Sequence[str],
) -> None:  # fmt: skip
    """A matrix per place, ``means (places, rows, columns)``, all with one scale of colours."""
    columns = min(len(places), 6)
    rows = math.ceil(len(places) / columns)
    figure = _figure((1.5 * columns + 0.8, 1.5 * rows + 0.6))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    style, image = _style(means), None
    for axes, place, matrix in zip(grid, places, means, strict=False):
        image = axes.imshow(matrix, aspect="auto", interpolation="nearest", **style)
        axes.set_title(place, fontsize=5)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(places) :]:
        axes.set_visible(False)
    figure.suptitle(f"{title}: {axes_names[-2]} (down) by {axes_names[-1]} {labels[0]} to {labels[-1]}", fontsize=9)
    figure.colorbar(image, ax=list(grid), shrink=0.7)
    figure.savefig(path, dpi=110)


def _figure(size: tuple[float, float]) -> Any:
    return require("matplotlib.figure", "bench", "a picture").Figure(figsize=size, layout="constrained")


def _height(places: Sequence[str]) -> float:
    return 1.4 + 0.16 * min(len(places), LINES)


def _style(values: np.ndarray) -> dict[str, Any]:
    """Colours: from white to both sides where there are both signs."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low >= 0:
        return {"cmap": MAP, "vmin": 0.0, "vmax": high or 1.0}
    reach = max(-low, high)
    return {"cmap": BOTH_SIGNS, "vmin": -reach, "vmax": reach}


def _image(figure: Any, axes: Any, values: np.ndarray, labels: Sequence[int]) -> None:
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **_style(values))
    figure.colorbar(image, ax=axes)
    if labels:
        step = max(1, len(labels) // 12)
        axes.set_xticks(range(0, len(labels), step), [str(n) for n in labels[::step]], fontsize=6)


def _name_places(axes: Any, places: Sequence[str]) -> None:
    step = math.ceil(len(places) / LINES)
    axes.set_yticks(range(0, len(places), step), list(places)[::step], fontsize=6)
    axes.set_ylim(len(places) - 0.5, -0.5)
