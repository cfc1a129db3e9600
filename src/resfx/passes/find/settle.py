"""What only the whole graph can tell: adds that looked residual from nearby, the order of the rest, and what lies
inside what."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from resfx.passes.find.branches.features import opening_norm, settle_axes
from resfx.passes.find.forms.coupled import only_opens

from .draft import Draft
from .reasons import CELL, NESTED_SCALED, OPENS, REINJECTED
from .walk import Walk


def misleading(drafts: Sequence[Draft], walk: Walk) -> dict[fx.Node, str]:
    """The adds that are none after all, each with the reason."""
    bare: dict[fx.Node, list[Draft]] = {}
    for site in drafts:
        if site.inner and walk.stream_at(walk.index.strip_scaled(site.branch)[0]) is not None:
            bare.setdefault(site.fork, []).append(site)
    dropped = {s.node: REINJECTED for group in bare.values() if len(group) > 1 for s in group}
    for site in drafts:
        for inner in site.inner:
            if inner.form == "scaled" and inner.fork is not site.fork:
                dropped[inner.node] = NESTED_SCALED
            elif only_opens(walk, inner, site):
                dropped[inner.node] = OPENS
                nodes = walk.between(site.fork, site.branch).nodes
                site.context = site.context or opening_norm(nodes, inner.node, walk.index)
    for site in drafts:
        if site.node not in dropped and _in_cell(site, walk):
            dropped[site.node] = CELL
    return dropped


def _in_cell(site: Draft, walk: Walk) -> bool:
    """Whether nothing reads the add but a concatenation of sums, most of which are no residual adds."""
    readers = walk.index.onward(site.node)
    for reader in readers:
        sums = [x for x in walk.index.data[reader] if x in walk.sums] if walk.index.name[reader] == "cat" else []
        if len(sums) < 3 or 2 * sum(x in walk.site_of for x in sums) >= len(sums):
            return False
    return bool(readers)


def order_sites(drafts: Sequence[Draft], walk: Walk) -> list[Draft]:
    """The drafts that remain in graph order, numbered within their owners, with their streams and nesting."""
    ordered = sorted(drafts, key=lambda s: walk.index.position[s.node])
    counts: dict[str, int] = {}
    for site in ordered:
        site.root, site.depth = walk.chain[site.node]
        site.order = counts.get(site.owner, 0)
        counts[site.owner] = site.order + 1
    settle_axes(ordered)
    _nest(ordered, walk)
    return ordered


def _nest(drafts: Sequence[Draft], walk: Walk) -> None:
    """Say which sites lie inside which. A branch knows the last add of a stream within it; the earlier ones
    are that stream's, back to the fork."""
    before: dict[fx.Node, Draft] = {}
    previous: dict[Draft, Draft | None] = {}
    for site in drafts:
        assert site.root is not None
        previous[site] = before.get(site.root)
        before[site.root] = site
    for site in drafts:
        site.inner = [s for s in site.inner if s in previous]
        start = walk.index.position[site.fork]
        for inner in site.inner:
            site.is_outer |= inner.root is site.root or inner.depth >= 2
            step: Draft | None = inner
            while step is not None and step.inside is None and walk.index.position[step.node] > start:
                step.inside = site
                step = previous[step]
