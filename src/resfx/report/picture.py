"""A picture of a report as SVG: each stream a line downwards, each residual add a circle where a branch comes back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resfx.errors import OptionError, path_of
from resfx.passes.find.site import Site, Stream
from resfx.runtime.saved.folder import refuse_unwritable

from .drawing import BAND, EDGE, KINDS, LINE, MARK, PAD, PAPER, Drawing, text_width
from .facts import Done, Facts
from .text import Fold, Shown, folds, note, plural, short_lines

STEP, HEAD, TRUNK, BRANCH, LABELS = 50, 28, 34, 76, 196
PER_ROW, WIDE, RAIL = 5, 5, 18


def draw(report: Facts, path: str | os.PathLike[str]) -> None:
    """Write a picture of a report's streams to an ``.svg`` file.

    Depth runs downwards; runs of identical blocks are drawn once. A circle is an add, its colour the kind of its
    branch; a ring marks one that was rewritten, and its method stands beside it. A dotted rail beside the stream is
    the depth that reads reach back over, three lines are a widened stream, a dot on a branch is a mixer in it, a
    small ring a projection that reads those of earlier layers.

    Raises:
        OptionError: for a path that does not end in ``.svg``.
    """
    if path_of(path, "cannot draw a report").suffix.lower() != ".svg":
        raise OptionError("a picture is written as .svg", f"{os.fspath(path)!r}", "report.draw('streams.svg')")
    refuse_unwritable(path)
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
    acting = {what for s in report.sites for what in acts(report, s)}
    if "replaced" in acting:
        out.circle(x + 8, y - 4, 6.5, PAPER, MARK, 3)
        x = out.text(x + 21, y, ("rewritten", "plain")) + 18
    if "wide" in acting:
        for shift in (-WIDE, 0, WIDE):
            out.path(f"M{x + 8 + shift:g} {y - 12:g} V{y + 3:g}", LINE, 1.8)
        x = out.text(x + 21, y, ("widened", "plain")) + 18
    if "depth" in acting:
        _read(out, x, x + RAIL, y - 4)
        x = out.text(x + 28, y, ("reads over depth", "plain")) + 18
    if "mixer" in acting:
        out.circle(x + 6, y - 4, 4.5, KINDS["mixer"])
        x = out.text(x + 17, y, ("mixes positions", "plain")) + 18
    if "route" in acting:
        out.circle(x + 6, y - 4, 4, PAPER, MARK, 2)
        out.text(x + 17, y, ("projections read earlier layers", "plain"))


def acts(report: Facts, site: Site) -> set[str]:
    """How methods act at a site, for the eye: ``replaced``, ``wide``, ``depth``, ``mixer``, ``route``."""
    kinds: tuple[Done, ...] = ("read", "replaced", "mixer", "route")
    read, replaced, mixers, routes = (set(report.methods_at(site, what)) for what in kinds)
    found = {
        "replaced": replaced,
        "wide": read & replaced,
        "depth": read - replaced,
        "mixer": mixers if site.form != "mixer" else set(),
        "route": routes,
    }
    return {what for what, methods in found.items() if methods}


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
    steps = [(shown.site, at + HEAD + STEP * i) for fold, at in bands for i, shown in enumerate(fold.sites)]
    _trunk(out, report, steps, trunk, start, y)
    out.path(f"M{trunk - 5:g} {y:g} L{trunk:g} {y + 8:g} L{trunk + 5:g} {y:g}", LINE, 2.5)
    for fold, at in bands:
        for i, shown in enumerate(fold.sites):
            with out.group(class_="site", data_site=shown.site.name):
                out.box(x + 3, at + HEAD + STEP * i - 2, width - 6, STEP, "transparent")  # all of it can be clicked
                _site(out, shown, acts(report, shown.site), places, trunk, at + HEAD + STEP * i)
    out.reach(x + width, y + 8)
    return width, y + 8


def _band(out: Drawing, fold: Fold, x: float, y: float, width: float) -> None:
    height = HEAD + STEP * len(fold.sites) + 4
    for shift in (6, 3) if len(fold.blocks) > 1 else ():
        out.box(x + shift, y + shift, width, height, BAND, EDGE, 8)
    out.box(x, y, width, height, BAND, EDGE, 8)
    repeat = [(f"x {len(fold.blocks)}", "mark")] if len(fold.blocks) > 1 else []
    out.text(x + TRUNK + 18, y + 18, (fold.name or "(root)", "bold"), *repeat)


def _trunk(
    out: Drawing, report: Facts, steps: Sequence[tuple[Site, float]], x: float, start: float, end: float
) -> None:
    """The stream itself: three lines where it is widened; beside it, what reads over depth reach back to."""
    out.path(f"M{x:g} {start:g} V{end + 6:g}", LINE, 2.5)
    wide = [y for site, y in steps if "wide" in acts(report, site)]
    for shift in (-WIDE, WIDE) if wide else ():
        top, bottom = wide[0] - 8, wide[-1] + STEP - 4
        out.path(f"M{x:g} {top - 6:g} L{x + shift:g} {top:g} V{bottom:g} L{x:g} {bottom + 6:g}", LINE, 1.8)
    reads = [y + 2 for site, y in steps if "depth" in acts(report, site)]
    if reads:
        out.path(f"M{x:g} {start + 3:g} H{x - RAIL:g} V{reads[-1]:g}", MARK, 1.6, "2 3")
    for y in reads:
        _read(out, x - RAIL, x, y)


def _read(out: Drawing, rail: float, x: float, y: float) -> None:
    """An arrow from the rail into the stream."""
    out.path(f"M{rail:g} {y:g} H{x - 5:g} M{x - 8:g} {y - 3:g} L{x - 4:g} {y:g} L{x - 8:g} {y + 3:g}", MARK, 1.6)


def _site(out: Drawing, shown: Shown, acting: set[str], places: dict[str, str], x: float, y: float) -> None:
    """A branch that leaves the trunk at ``y``, its box, and the circle where it comes back."""
    site = shown.site
    colour, add = KINDS.get(site.kind, KINDS["other"]), y + 36
    box = x + BRANCH - 32
    if site.form in ("projection", "resampled"):
        out.path(f"M{x:g} {y + 8:g} V{add - 12:g}", BAND, 4)
        out.path(f"M{x:g} {y + 8:g} V{add - 12:g}", LINE, 2.5, dashes="4 4")
    middle = box + 42
    out.path(f"M{x:g} {y + 2:g} H{middle - 8:g} Q{middle:g} {y + 2:g} {middle:g} {y + 9:g}", colour, 1.8)
    out.path(f"M{middle:g} {y + 27:g} Q{middle:g} {add:g} {middle - 8:g} {add:g} H{x:g}", colour, 1.8)
    if "mixer" in acting:
        out.circle(x + 24, y + 2, 4.5, KINDS["mixer"])
    out.box(box, y + 7, 84, 21, PAPER, colour)
    out.text(middle, y + 21.5, (site.kind, site.kind if site.kind in KINDS else "other"), anchor="middle")
    if "route" in acting:
        out.circle(box + 84, y + 17, 4, PAPER, MARK, 2)
    if "replaced" in acting:
        out.circle(x, add, 12.5, PAPER, MARK, 3)
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
