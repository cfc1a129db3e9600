"""A picture of a report as SVG: each stream a line downwards, each residual add a circle where a branch comes back."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

from resfx.passes.find.site import Site, Stream

from .facts import Facts
from .text import Fold, Shown, folds, note, plural, short_lines

KINDS = {"attention": "#3b6fd4", "mlp": "#e08a1e", "conv": "#2f9e6e", "mixer": "#8a5cd1", "other": "#7b8794"}
INK, GREY, LINE, BAND, MARK = "#1f2933", "#7b8794", "#52606d", "#f3f5f8", "#c2255c"
STEP, HEAD, PAD, TRUNK, BRANCH, LABELS = 50, 28, 14, 34, 76, 196
PER_ROW, GAP = 5, 10
STYLES = {  # size, colour, weight
    "title": (18, INK, 700), "head": (13, INK, 700), "bold": (12, INK, 700), "plain": (12, INK, 400),
    "mark": (12, MARK, 700), "hint": (12, GREY, 400), "small": (11, GREY, 400),
    **{kind: (12, colour, 700) for kind, colour in KINDS.items()},
}  # fmt: skip


class Drawing:
    """SVG elements and the room they take."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.width = self.height = 0.0

    def text(self, x: float, y: float, *runs: tuple[str, str], anchor: str = "start") -> float:
        """Write runs of ``(text, style)`` on one line; returns where it ends, about."""
        spans, end = "", x
        for i, (text, style) in enumerate(runs):
            size, colour, weight = STYLES[style]
            gap = f' dx="{GAP}"' if i else ""
            spans += f'<tspan{gap} font-size="{size}" fill="{colour}" font-weight="{weight}">{escape(text)}</tspan>'
            end += text_width(text, style) + (GAP if i else 0)
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{spans}</text>')
        end = end if anchor == "start" else x
        self._reach(end, y + 5)
        return end

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none",
            radius: float = 6) -> None:  # fmt: skip
        """A rectangle with round corners."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{stroke}"/>'
        )
        self._reach(x + width, y + height)

    def path(self, d: str, colour: str = LINE, width: float = 2, dashed: bool = False) -> None:
        """A line along SVG path data."""
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self.parts.append(f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>')

    def circle(self, x: float, y: float, radius: float, fill: str, stroke: str = "none", width: float = 0) -> None:
        """A disc or a ring."""
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{stroke}" stroke-width="{width:g}"/>'
        )

    def svg(self) -> str:
        """The document."""
        width, height = self.width + PAD, self.height + PAD
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">\n'
            f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )

    def _reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)


def text_width(text: str, style: str) -> float:
    """About how wide a line of text is; SVG has no way to ask."""
    size, _, weight = STYLES[style]
    return (0.56 if weight == 400 else 0.62) * size * len(text)


def draw(report: Facts, path: str | os.PathLike[str]) -> None:
    """Write a picture of a report's streams to an ``.svg`` file.

    Depth runs downwards; runs of identical blocks are drawn once. A circle is an add, its colour the kind of its
    branch; a ring marks one that was rewritten, and its method stands beside it.

    Raises:
        ValueError: for a path that does not end in ``.svg``.
    """
    if Path(path).suffix.lower() != ".svg":
        raise ValueError(f"a picture is written as .svg, not {os.fspath(path)!r}")
    Path(path).write_text(picture(report).svg(), encoding="utf-8")


def picture(report: Facts) -> Drawing:
    """The drawing of a report."""
    out = Drawing()
    places = short_lines([s.line for s in report.sites] + [s.line for s in report.skips])
    out.text(PAD, 28, (report.model, "title"))
    changed = len(report.changed)
    line = f"{plural(len(report.sites), 'residual add')}, {plural(len(report.streams), 'stream')}"
    if changed:
        line += f", {changed} rewritten, {plural(sum(report.new_parameters.values()), 'new parameter')}"
    out.text(PAD, 48, (line, "hint"))
    _legend(out, report, PAD, 72)
    top = 100.0
    for start in range(0, len(report.streams), PER_ROW):
        left, bottom = float(PAD), top
        for stream in report.streams[start : start + PER_ROW]:
            width, end = _stream(out, report, stream, places, left, top)
            left, bottom = left + width + 26, max(bottom, end)
        top = bottom + 30
    _skips(out, report, places, top)
    return out


def _legend(out: Drawing, report: Facts, x: float, y: float) -> None:
    present = dict.fromkeys(s.kind for s in report.sites)
    for kind in (k for k in KINDS if k in present):
        out.circle(x + 7, y - 4, 6, KINDS[kind])
        x = out.text(x + 19, y, (kind, "plain")) + 18
    if report.changed:
        out.circle(x + 8, y - 4, 6.5, "#ffffff", MARK, 3)
        out.text(x + 21, y, ("rewritten", "plain"))


def _stream(
    out: Drawing, report: Facts, stream: Stream, places: dict[str, str], x: float, y: float
) -> tuple[float, float]:
    """Draw a stream from ``(x, y)``; returns its width and where it ends."""
    groups = folds(stream, report)
    longest = max((_label_width(s, places) for f in groups for s in f.sites), default=0.0)
    names = max((text_width(f"{f.name}  x 100", "bold") + TRUNK + 18 for f in groups), default=0.0)
    inside = {s.inside.name for s in stream.sites if s.inside is not None}
    hint = f"width {stream.width}" if stream.width is not None else "width unknown"
    hint += f", inside {min(inside)}" + (" and others" if len(inside) > 1 else "") if inside else ""
    title = f"stream {stream.number}"
    end = out.text(x, y + 4, (title, "head"), (hint, "hint"))
    width = max(LABELS + longest + PAD, names + PAD, end - x, 250)
    start, trunk = y + 16, x + TRUNK
    y = start + 14
    bands = []
    for fold in groups:
        bands.append((fold, y))
        y += HEAD + STEP * len(fold.sites) + 16
    for fold, at in bands:  # bands first: the trunk runs over them
        _band(out, fold, x, at, width)
    out.path(f"M{trunk:g} {start:g} V{y + 6:g}", LINE, 2.5)
    out.path(f"M{trunk - 5:g} {y:g} L{trunk:g} {y + 8:g} L{trunk + 5:g} {y:g}", LINE, 2.5)
    for fold, at in bands:
        for i, site in enumerate(fold.sites):
            _site(out, site, fold, places, trunk, at + HEAD + STEP * i)
    out._reach(x + width, y + 8)
    return width, y + 8


def _band(out: Drawing, fold: Fold, x: float, y: float, width: float) -> None:
    height = HEAD + STEP * len(fold.sites) + 4
    for shift in (6, 3) if len(fold.blocks) > 1 else ():
        out.box(x + shift, y + shift, width, height, BAND, "#d5dbe3", 8)
    out.box(x, y, width, height, BAND, "#d5dbe3", 8)
    repeat = [(f"x {len(fold.blocks)}", "mark")] if len(fold.blocks) > 1 else []
    out.text(x + TRUNK + 18, y + 18, (fold.name or "(root)", "bold"), *repeat)


def _site(out: Drawing, shown: Shown, fold: Fold, places: dict[str, str], x: float, y: float) -> None:
    """A branch that leaves the trunk at ``y``, its box, and the circle where it comes back."""
    site = shown.site
    colour, add = KINDS.get(site.kind, KINDS["other"]), y + 36
    box = x + BRANCH - 32
    if site.form in ("projection", "resampled"):
        out.path(f"M{x:g} {y + 8:g} V{add - 12:g}", BAND, 4)
        out.path(f"M{x:g} {y + 8:g} V{add - 12:g}", LINE, 2.5, dashed=True)
    middle = box + 42
    out.path(f"M{x:g} {y + 2:g} H{middle - 8:g} Q{middle:g} {y + 2:g} {middle:g} {y + 9:g}", colour, 1.8)
    out.path(f"M{middle:g} {y + 27:g} Q{middle:g} {add:g} {middle - 8:g} {add:g} H{x:g}", colour, 1.8)
    out.box(box, y + 7, 84, 21, "#ffffff", colour)
    out.text(middle, y + 21.5, (site.kind, site.kind if site.kind in KINDS else "other"), anchor="middle")
    if shown.methods:
        out.circle(x, add, 12.5, "#ffffff", MARK, 3)
    out.circle(x, add, 9, colour)
    out.path(f"M{x - 4.5:g} {add:g} H{x + 4.5:g} M{x:g} {add - 4.5:g} V{add + 4.5:g}", "#ffffff", 2)
    label = x - TRUNK + LABELS
    head, tail = _labels(site, places)
    runs = [(head, "plain")] * bool(head) + [(" + ".join(shown.methods), "mark")] * bool(shown.methods)
    if runs:
        out.text(label, y + 15, *runs)
    out.text(label, y + (31 if runs else 22), (tail, "small"))


def _labels(site: Site, places: dict[str, str]) -> tuple[str, str]:
    owner = site.owner.removeprefix(site.block).lstrip(".") if site.block else site.owner
    form = site.form if site.form not in ("identity", "mixer") else ""
    return owner, ", ".join(filter(None, (places[site.line], form, note(site))))


def _label_width(shown: Shown, places: dict[str, str]) -> float:
    head, tail = _labels(shown.site, places)
    return max(text_width(f"{head}  {' + '.join(shown.methods)}", "mark"), text_width(tail, "small"))


def _skips(out: Drawing, report: Facts, places: dict[str, str], y: float) -> None:
    residual = {s.node for s in report.sites}
    for title, skips in (
        ("left alone", [s for s in report.skips if s.node in residual]),
        ("not residual", [s for s in report.skips if s.node not in residual]),
    ):
        if not skips:
            continue
        out.text(PAD, y, (title, "head"))
        first = {s.reason: s for s in reversed(skips)}
        for reason, count in Counter(s.reason for s in skips).most_common():
            y += 18
            out.text(PAD + 26, y, (f"{count}", "bold"), anchor="end")
            out.text(PAD + 36, y, (reason, "plain"), (places[first[reason].line], "small"))
        y += 30
