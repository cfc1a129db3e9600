"""Text for people: an aligned table, and the table of a report."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath
from typing import Any

from resfx.passes.find.site import Site, Skip, Stream

from .facts import Facts


def table(rows: Iterable[Sequence[Any]], header: Sequence[str] = (), align: str = "", indent: int = 0) -> str:
    """Rows as aligned columns, two spaces apart.

    Args:
        rows: cells; ``None`` is printed as nothing. A row may be shorter than the header.
        header: column titles; a column whose cells and title are all empty is left out.
        align: ``"<"`` or ``">"`` for each column; missing ones are ``"<"``.
        indent: spaces before every line.
    """
    lines = [["" if cell is None else str(cell) for cell in row] for row in ([header] if header else []) + list(rows)]
    columns = max((len(line) for line in lines), default=0)
    lines = [line + [""] * (columns - len(line)) for line in lines]
    body = lines[1:] if header else lines
    kept = [i for i in range(columns) if any(line[i] for line in body)]
    widths = {i: max(len(line[i]) for line in lines) for i in kept}
    sides = align.ljust(columns, "<")
    text = ["  ".join(f"{line[i]:{sides[i]}{widths[i]}}" for i in kept).rstrip() for line in lines]
    return "\n".join(" " * indent + line if line else line for line in text)


def methods_table(markdown: bool = False) -> str:
    """Every method: its name, its config, where it acts, and the first line of the file that defines it.

    Args:
        markdown: with its paper, its new parameters per site, what it keeps between tokens and what crosses stages.
    """
    from resfx.methods.base import methods

    rows = [
        (name, cls.__name__, getattr(cls(), "scope", ""), (sys.modules[cls.__module__].__doc__ or "").split("\n")[0])
        for name, cls in methods().items()
    ]
    if not markdown:
        return table(rows, ("mode", "config", "scope", "what it does"))
    header = ("mode", "config", "scope", "what it does", "paper", "new parameters (at each add, read, block or layer)",
              "kept between tokens", "crosses stages")  # fmt: skip
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (name, config, scope, text), cls in zip(rows, methods().values(), strict=True):
        papers = ", ".join(f"[{p}](https://arxiv.org/abs/{p})" for p in re.findall(r"arXiv (\d{4}\.\d{5})", text))
        said = re.sub(r" \(arXiv [^)]*\)|, arXiv [\d.]+\d", "", text)
        cells = (
            f"[`{name}`](docs/methods/{name}.md)",
            f"`resfx.{config}`",
            scope,
            said,
            papers,
            cls.parameters,
            cls.kept,
            cls.crosses,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plural(count: int, noun: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Shown:
    """A site with the methods that act at it."""

    site: Site
    methods: list[str]


@dataclass(frozen=True)
class Fold:
    """A run of blocks with the same sites, and the sites of its first block."""

    blocks: list[str]
    sites: list[Shown]

    @property
    def name(self) -> str:
        """The blocks' common name, ``model.layers.{0..11}``."""
        return fold_names(self.blocks)


def folds(stream: Stream, report: Facts) -> list[Fold]:
    """The sites of a stream of a report by block, runs of identical blocks together."""
    shown = [Shown(site, report.methods_at(site)) for site in stream.sites]
    blocks = [(name, list(sites)) for name, sites in groupby(shown, key=lambda s: s.site.block)]
    found: list[Fold] = []
    for _, run in groupby(blocks, key=lambda pair: [_signature(s) for s in pair[1]]):
        same = list(run)
        found.append(Fold([name for name, _ in same], same[0][1]))
    return found


def fold_names(names: Sequence[str]) -> str:
    """One name for several that differ in one number: ``h.{0..11}``; else the first and the last."""
    if len(names) == 1:
        return names[0]
    paths = [n.split(".") for n in names]
    differing = [i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1]
    if len(differing) == 1 and len({len(p) for p in paths}) == 1:
        i = differing[0]
        return ".".join([*paths[0][:i], f"{{{paths[0][i]}..{paths[-1][i]}}}", *paths[0][i + 1 :]])
    return f"{names[0]} .. {names[-1]}"


def _signature(shown: Shown) -> tuple[Any, ...]:
    site = shown.site
    inside = _below(site.inside.name, site.inside.block) if site.inside else None
    return (_below(site.owner, site.block), site.order, site.kind, site.form, site.line, *shown.methods, inside,
            site.is_outer, site.width)  # fmt: skip


def _below(name: str, block: str) -> str:
    return name.removeprefix(block) if block else name


def report_text(report: Facts) -> str:
    """A report as text: a headline, a table of sites for each stream, what was left alone and what is not residual."""
    places = short_lines([s.line for s in report.sites] + [s.line for s in report.skips])
    parts = [headline(report)]
    parts += [_stream(report, stream, places) for stream in report.streams]
    residual = {s.node for s in report.sites}
    left = [s for s in report.skips if s.node in residual]
    other = [s for s in report.skips if s.node not in residual]
    if left:
        parts.append(f"left alone: {plural(len(left), 'site')}\n" + _skips(left, places))
    if other:
        parts.append(f"not residual: {plural(len(other), 'add')}\n" + _skips(other, places))
    return "\n\n".join(parts)


def headline(report: Facts) -> str:
    """One line: how many adds in how many streams, what was done, what is new."""
    sites, streams = plural(len(report.sites), "residual add"), plural(len(report.streams), "stream")
    line = f"{report.model}: {sites} in {streams}" if report.sites else f"{report.model}: no residual add"
    acting = [m for s in report.changed for m in report.methods_at(s)]
    for method in dict.fromkeys(acting):
        line += f", {acting.count(method)} rewritten by {method}"
    if report.new_parameters:
        total = sum(report.new_parameters.values())
        line += f", {plural(total, 'new parameter')} in {plural(len(report.new_parameters), 'tensor')}"
    return line + f" ({report.nodes:,} graph nodes)"


def _stream(report: Facts, stream: Stream, places: dict[str, str]) -> str:
    rows = []
    for fold in folds(stream, report):
        blocks = len(fold.blocks)
        for i, shown in enumerate(fold.sites):
            site = shown.site
            owner = fold.name + _below(site.owner, site.block) if blocks > 1 else site.owner
            how = " + ".join(shown.methods)
            repeat = f"x {blocks} blocks" if blocks > 1 and i == 0 else ""
            rows.append((owner or "(root)", site.kind, site.form, places[site.line], how, note(site), repeat))
    width = f"width {stream.width}" if stream.width is not None else "width unknown"
    mixers = sum(s.form == "mixer" for s in stream.sites)
    count = plural(len(stream.sites) - mixers, "site") + (f" and {plural(mixers, 'mixer')}" if mixers else "")
    title = f"stream {stream.number}: {count}, {width}" + _runs(stream)
    return title + "\n" + table(rows, ("owner", "kind", "form", "source", "method", "note", ""), indent=2)


def _runs(stream: Stream) -> str:
    """That layers run several times a call, if they do: then each run has adds, and new modules, of its own."""
    runs = Counter((s.owner, s.lines, s.calls) for s in stream.sites if s.lines)
    most = max(runs.values(), default=1)
    return f"; its layers run up to {most} times a call, each time with new modules of their own" if most > 1 else ""


def note(site: Site) -> str:
    """What is unusual about a site, in a few words."""
    notes = ["long skip"] * site.is_outer
    if site.inside is not None:
        notes.append(f"inside {site.inside.name}")
    return ", ".join(notes)


def _skips(skips: list[Skip], places: dict[str, str]) -> str:
    groups: dict[tuple[str, str], list[Skip]] = {}
    for skip in skips:
        groups.setdefault((skip.reason, skip.remedy), []).append(skip)
    widest = max(len(f"{len(group)}") for group in groups.values())
    lines = []
    for (reason, remedy), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = group[0]
        place = ", ".join(filter(None, (first.owner or "(root)", places[first.line])))
        lines.append(f"  {len(group):>{widest}}  {reason}")
        lines.append(f"  {'':{widest}}  {'at ' if len(group) == 1 else 'such as '}{place}")
        if remedy:
            lines.append(f"  {'':{widest}}  try: {remedy}")
    return "\n".join(lines)


def short_lines(lines: Iterable[str]) -> dict[str, str]:
    """``file.py:12`` for each ``/long/path/file.py:12``, with its folder where two files share a name."""
    paths = {line: PurePath(re.sub(r":\d+$", "", line)) for line in lines}
    short = {}
    for line, path in paths.items():
        others = {p for p in paths.values() if p.name == path.name}
        name = path.name if len(others) == 1 else "/".join(path.parts[-2:])
        short[line] = f"{name}:{line.rpartition(':')[2]}" if ":" in line else line
    return short
