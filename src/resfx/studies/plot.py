"""The figures of a study: differences to plain with their intervals, curves, and loss over parameters."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from resfx.errors import require

from .run import PLAIN

GREY, DPI = "#9aa5b1", 80


def plot_differences(path: str | os.PathLike[str], title: str, rows: Sequence[Any]) -> None:
    """Each row's held-out loss less the plain model's: every seed a dot, the mean and its 95 % interval a bar.

    Args:
        rows: of :class:`.results.Row`, those with a difference.
    """
    figure = _figure((7, 1.2 + 0.28 * len(rows)))
    axes = figure.subplots()
    axes.axvline(0, color=GREY, linewidth=1)
    colours = _colours([row.label for row in rows])
    for place, row in enumerate(rows):
        difference = row.difference
        shared = [loss - row.plain[seed]["loss"] for seed, loss in row.losses.items() if seed in row.plain]
        axes.plot(shared, [place] * len(shared), "o", color=GREY, markersize=4)
        if difference.seeds > 1:
            axes.errorbar(difference.mean, place, xerr=difference.half, fmt="|", color=colours[row.label],
                          capsize=3, linewidth=2, markersize=9)  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("held-out loss less the plain model's, nats per token (left is better)")
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=DPI)


def plot_curves(path: str | os.PathLike[str], title: str, rows: Sequence[Any], tokens_per_step: int) -> None:
    """Held-out loss over tokens, less the plain model's over tokens, and over time; means over a row's seeds."""
    figure = _figure((11, 3.4))
    over_tokens, less_plain, over_time = figure.subplots(1, 3)
    colours = _colours([row.label for row in rows])
    for row in rows:
        style: dict[str, Any] = {"color": colours[row.label], "linewidth": 1.2}
        curve = _mean([r["points"] for r in row.results.values()])
        tokens = [p[0] * tokens_per_step / 1000 for p in curve]
        over_tokens.plot(tokens, [p[1] for p in curve], label=row.label, **style)
        over_time.plot([p[3] for p in curve], [p[1] for p in curve], **style)
        shared = [(r["points"], row.plain[s]["points"]) for s, r in row.results.items() if s in row.plain]
        if shared and all(len(a) == len(b) and a[-1][0] == b[-1][0] for a, b in shared):
            less = _mean([[[x - y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]
                          for a, b in shared])  # fmt: skip
            less_plain.plot(tokens, [p[1] for p in less], **style)
    over_tokens.set(xlabel="thousand tokens", ylabel="held-out loss, nats per token", title=title)
    less_plain.set(xlabel="thousand tokens", title="less the plain model's")
    over_time.set(xlabel="seconds of training", title="over time")
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    figure.savefig(path, dpi=DPI)


def plot_parameters(path: str | os.PathLike[str], title: str, rows: Sequence[Any]) -> None:
    """Final held-out loss over the number of parameters, with standard errors over seeds."""
    figure = _figure((6, 4))
    axes = figure.subplots()
    colours = _colours([row.label for row in rows])
    for row in rows:
        axes.errorbar(row.any["parameters"], row.mean, yerr=row.error or 0, fmt="o", markersize=4, capsize=2,
                      color=colours[row.label], label=row.label)  # fmt: skip
    axes.set(xlabel="parameters", ylabel="held-out loss, nats per token", title=title)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    figure.savefig(path, dpi=DPI)


def plot_depth(path: str | os.PathLike[str], title: str, curves: dict[str, Sequence[float]], axis: str) -> None:
    """A number behind every block, a line for each row."""
    figure = _figure((6, 3.6))
    axes = figure.subplots()
    colours = _colours(curves)
    for label, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, ".-", color=colours[label], label=label, linewidth=1.2)
    axes.set(xlabel="behind block", ylabel=axis, yscale="log", title=title)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    figure.savefig(path, dpi=DPI)


def _figure(size: tuple[float, float]) -> Any:
    return require("matplotlib.figure", "bench", "a figure").Figure(figsize=size, layout="constrained")


def _colours(labels: Iterable[str]) -> dict[str, Any]:
    """One colour a label, the same in every figure: black for the plain model."""
    palette = require("matplotlib", "bench", "a figure").colormaps["tab20"]
    others = [label for label in labels if label != PLAIN]
    return {PLAIN: "black", **{label: palette(i % 20) for i, label in enumerate(others)}}


def _mean(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Point by point over seeds."""
    return [[statistics.fmean(values) for values in zip(*points, strict=True)] for points in zip(*curves, strict=True)]
