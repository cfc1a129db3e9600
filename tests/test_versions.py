"""The sets of versions: the floor is what ``pyproject.toml`` allows, and the page says what the sets are."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

from .borrowed import TABLE
from .versions import PACKAGES, PAGE, ROOT, page

TOOLS = {"dev", "docs"}  # what runs the tests is the same in all sets; what makes the site runs in one


def test_the_floor_is_what_pyproject_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, of in project["optional-dependencies"].items() if name not in TOOLS for line in of]
    wanted = {
        r.name: Version(s.version)
        for r in map(Requirement, [*project["dependencies"], *extras])
        for s in r.specifier
        if s.operator == ">=" and r.name != "onnxruntime-gpu"  # onnxruntime's twin, which cannot be beside it
    }
    floor, tested, newest = (pinned(name) for name in ("floor", "tested", "newest"))
    assert wanted and wanted == {name: floor[name] for name in wanted}
    assert all(floor[name] <= tested[name] and floor[name] <= newest[name] for name in wanted)
    assert floor.keys() >= tested.keys() == newest.keys()


def test_the_page_is_up_to_date():
    text, sets = PAGE.read_text(), ["floor", "tested", "newest"]
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in text.splitlines()}
    marks = {one.name: cells[f"`{one.name}`"][-len(sets) :] for one in TABLE}
    assert {mark for row in marks.values() for mark in row} <= {"yes", "**no**"}
    there = {name: {one: row[i] == "yes" for one, row in marks.items()} for i, name in enumerate(sets)}
    versions = {name: {p: pinned(name)[p] for p in PACKAGES} for name in sets}
    found = {name: {"versions": versions[name], "there": there[name]} for name in sets}
    assert text == page(found), "make versions"


def pinned(name):
    """Versions of a set; they print as they are written."""
    text = (ROOT / "constraints" / f"{name}.txt").read_text()
    return {package: Version(version) for package, version in re.findall(r"^(\S+)==(\S+)$", text, re.M)}
