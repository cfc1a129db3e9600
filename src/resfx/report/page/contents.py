"""What the page tells of each add and of each skip, as plain data."""

from __future__ import annotations

import dataclasses
import linecache
from typing import Any

from resfx.passes.find.site import Site, Skip
from resfx.report.facts import Facts
from resfx.report.text import folds, note, short_lines
from resfx.runtime.module import Handle, rewriting_of

AROUND = 3  # lines of source before and after the add


def sites_of(report: Facts, handle: Handle | None) -> dict[str, list[dict[str, Any]]]:
    """For each add of the picture, what there is to know of it, once for every block that is drawn as this one."""
    places = short_lines([s.line for s in report.sites])
    shapes = parameters_of(handle)
    found: dict[str, list[dict[str, Any]]] = {}
    for stream in report.streams:
        at = 0
        for fold in folds(stream, report):
            count = len(fold.sites)
            drawn = stream.sites[at : at + count * len(fold.blocks)]
            at += len(drawn)
            for i, shown in enumerate(fold.sites):
                alike = drawn[i::count]
                found[shown.site.name] = [_site(report, handle, s, places, shapes.get(s.name, {})) for s in alike]
    return found


def _site(
    report: Facts, handle: Handle | None, site: Site, places: dict[str, str], parameters: dict[str, list[int]]
) -> dict[str, Any]:
    runs, code = code_of(handle, site.owner)
    acting = {what: report.methods_at(site, what) for what in ("replaced", "read", "mixer", "route")}
    return {
        "name": site.name, "owner": site.owner or "(root)", "block": site.block, "kind": site.kind, "form": site.form,
        "place": places[site.line], "source": source_lines(site.line), "stream": site.stream, "depth": site.depth,
        "width": site.width, "note": note(site), "acting": {k: v for k, v in acting.items() if v},
        "parameters": parameters, "runs": runs, "code": code,
    }  # fmt: skip


def code_of(handle: Handle | None, owner: str) -> tuple[str, str]:
    """The innermost module around an add that runs generated code, and that code; nothing of a scan."""
    if handle is None:
        return "", ""
    there = {name for name, _ in handle.module.named_modules()}
    while owner and (owner not in there or not handle.code(owner)):
        owner = owner.rpartition(".")[0]
    return owner or "(root)", handle.code(owner)


def source_lines(line: str) -> list[tuple[int, str, bool]]:
    """The lines around ``file:line``: number, text, whether it is the one; nothing where the file is not there."""
    file, _, number = line.rpartition(":")
    if not number.isdigit():
        return []
    here, lines = int(number), linecache.getlines(file)
    first = max(here - AROUND, 1)
    return [(n, text.rstrip(), n == here) for n, text in enumerate(lines[first - 1 : here + AROUND], first)]


def parameters_of(handle: Handle | None) -> dict[str, dict[str, list[int]]]:
    """Shapes of the new parameters of each add, by name within ``resfx.``."""
    found: dict[str, dict[str, list[int]]] = {}
    if handle is None:
        return found
    new = {name: list(p.shape) for name, p in handle.new_parameters().items()}
    for application in rewriting_of(handle.module).applications:
        for placed in application.placed.values():
            mine = {n: shape for n, shape in new.items() if n.startswith(f"{placed.path}.")}
            found.setdefault(placed.site, {}).update({n.removeprefix("resfx."): shape for n, shape in mine.items()})
    return found


@dataclasses.dataclass(frozen=True)
class Left:
    """Skips for one reason.

    Attributes:
        residual: whether they are residual adds that a method left alone.
    """

    reason: str
    remedy: str
    places: list[str]
    residual: bool


def left_out(report: Facts) -> list[Left]:
    """What was left alone, then what is not residual; the most frequent reason first."""
    residual, places = {s.node for s in report.sites}, short_lines([s.line for s in report.skips])
    groups: dict[tuple[bool, str, str], list[Skip]] = {}
    for skip in report.skips:
        groups.setdefault((skip.node in residual, skip.reason, skip.remedy), []).append(skip)
    left = [Left(reason, remedy, [f"{s.owner or '(root)'}, {places[s.line]}" for s in skips], is_residual)
            for (is_residual, reason, remedy), skips in groups.items()]  # fmt: skip
    return sorted(left, key=lambda one: (not one.residual, -len(one.places)))
