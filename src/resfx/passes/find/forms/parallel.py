"""``(x + attention(x)) + mlp(x)``: the second branch starts where the first one did."""

from __future__ import annotations

from resfx.passes.find.draft import Draft
from resfx.passes.find.terms import Reading
from resfx.passes.find.walk import Walk


def parallel_form(walk: Walk, add: Reading) -> Draft | None:
    """The site of an add whose branch starts at the fork of the add, or of the adds, before it."""
    state = walk.index.strip(add.shortcut.value)
    for _ in range(3):
        site = walk.site_of.get(state)
        if site is None or site.form in ("projection", "resampled"):
            return None
        found = walk.between(site.fork, add.branch.value)
        if found.is_plain:
            return walk.draft(add, site.fork, "parallel", found)
        state = site.fork
    return None
