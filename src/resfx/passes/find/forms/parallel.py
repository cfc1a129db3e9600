"""``(x + attention(x)) + mlp(x)``: the second branch starts where the first one did."""

from __future__ import annotations

from torch import fx

from resfx.passes.find.draft import Draft
from resfx.passes.find.walk import Walk


def parallel_form(walk: Walk, node: fx.Node, shortcut: fx.Node, branch: fx.Node) -> Draft | None:
    """The site of an add whose branch starts at the fork of the add, or of the adds, before it."""
    state = walk.index.strip(shortcut)
    for _ in range(3):
        site = walk.site_of.get(state)
        if site is None or site.form in ("projection", "resampled"):
            return None
        found = walk.between(site.fork, branch)
        if found.is_plain:
            return walk.draft(node, shortcut, branch, site.fork, "parallel", found)
        state = site.fork
    return None
