"""Finding residual adds: every add of two tensors becomes a :class:`Site` or a :class:`Skip` with a reason.

An add is residual when one operand (the shortcut), stripped of operators that only rearrange, is a fork ``u``
from which the other operand (the branch) was computed through at least one weighted operator. :mod:`.walk` walks back
from the branch to the fork; :mod:`.forms` has one file for each way in which the two are written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import fx, nn

from resfx.passes.capture import untraced
from resfx.passes.find.forms.coupled import coupled_form, first_of_pair, joined_form
from resfx.passes.find.forms.parallel import parallel_form
from resfx.passes.find.forms.plain import plain_form
from resfx.passes.find.forms.projections import projection_form

from .draft import Draft
from .graph import dtype, owner, same_shape, source_line
from .index import Index
from .reasons import (
    BROADCAST,
    CONSTANT,
    DEAD,
    ELEMENTWISE,
    FOREIGN,
    INTEGER,
    MERGED,
    NO_PATH,
    OVERWRITTEN,
    QUANTISED,
    QUERY,
    REINJECTED,
    REMEDIES,
    REVERSED,
    SPELLED_OTHERWISE,
    UNTRACED,
    explain,
)
from .settle import misleading, order_sites
from .site import Site, Skip, Stream
from .streams import streams_of
from .sums import sum_of
from .terms import Sum
from .walk import Walk


class Found(NamedTuple):
    """What a graph has: every add as a site or a skip, each in graph order, and the streams that the sites form."""

    sites: list[Site]
    skips: list[Skip]
    streams: list[Stream]


def find_sites(graph: fx.Graph, root: nn.Module | None = None) -> Found:
    """Every add of ``graph`` as a site or a skip, and the streams.

    Args:
        graph: a captured or symbolically traced graph; shapes are used where its nodes carry them.
        root: the module tree of ``call_module`` nodes and parameters.
    """
    detector = Detector(graph, root).run()
    sites, streams = streams_of(detector.drafts)
    return Found(sites, detector.skips, streams)


class Detector:
    """One search over one graph. ``drafts`` and ``skips`` are in graph order."""

    def __init__(self, graph: fx.Graph, root: nn.Module | None = None) -> None:
        self.index = Index(graph, root)
        self.walk = Walk(self.index, root)
        self.drafts: list[Draft] = []
        self.skips: list[Skip] = []

    def run(self) -> Detector:
        """Visit every add in order, then settle what only the whole graph can tell."""
        for node in self.index.nodes:
            if node.target is untraced.UNTRACED:
                self._tell_untraced(node)
            if (found := sum_of(node, self.index)) is not None:
                self.walk.sums[node] = found
                self._visit(found)
        for node, reason in (dropped := misleading(self.drafts, self.walk)).items():
            self._refuse(node, reason)
        self.drafts = order_sites([s for s in self.drafts if s.node not in dropped], self.walk)
        self.skips.sort(key=lambda s: self.index.position[s.node])  # type: ignore[index]
        return self

    def _tell_untraced(self, node: fx.Node) -> None:
        path, why = str(node.args[1]), str(node.args[3])
        if all(s.owner != path for s in self.skips):
            remedy = "adds in it, if it has any, stay; export and other lowerings of the whole graph need it traced"
            self.skips.append(Skip(path, source_line(node), f"{UNTRACED}: {why}", remedy, node))

    def _visit(self, add: Sum) -> None:
        found = self._implausible(add) or self._form(add)
        if isinstance(found, Draft):
            self._accept(found)
        elif self.index.name[add.node] == "add" and add.terms:
            self._refuse(add.node, explain(add.node, add.values, found, self.index))
        elif found in SPELLED_OTHERWISE:
            self._refuse(add.node, found)
            if found is QUANTISED:  # what is left of a state is no longer its code's
                self.index.data[add.node] = self.index.data[add.node][:1]

    def _implausible(self, add: Sum) -> str | None:
        node, kind, index = add.node, dtype(add.node), self.index
        if node not in index.alive:
            return DEAD
        if kind is not None and not kind.is_floating_point and kind is not torch.complex64:
            return INTEGER
        if any(same_shape(term.value, node) is False for term in add.terms if term.product is None):
            return BROADCAST
        if (rank := index.rank(node)) is not None and rank < 2:
            return BROADCAST
        return OVERWRITTEN if node in index.observed else None

    def _form(self, add: Sum) -> Draft | str:
        """The site of an add in the first form that fits, or why none does."""
        walk, readings = self.walk, add.readings()
        reasons: set[str] = set()
        for scaled in (False, True):
            for reading in readings:
                found = plain_form(walk, reading, scaled)
                if isinstance(found, Draft) or found in (MERGED, QUANTISED, QUERY, REINJECTED):
                    return REVERSED if reading.shortcut.weight < 0 else found
                if found is not None:
                    reasons.add(found)
        if add.reason:
            apart = any(self._is_residual(x, f) for x, f in add.pairs)
            return add.reason if apart else NO_PATH
        readings = [r for r in readings if r.shortcut.weight > 0]
        for reading in readings:
            if (parallel := parallel_form(walk, reading)) is not None:
                return parallel
        for reading in readings:
            if FOREIGN in reasons and (coupled := coupled_form(walk, reading)) is not None:
                return coupled
            if (joined := joined_form(walk, reading)) is not None:
                return joined
        for reading in readings:
            if (projected := projection_form(walk, reading)) is not None:
                return projected
        closer = next((r for r in (ELEMENTWISE, FOREIGN) if r in reasons), None)
        return closer or (CONSTANT if any(self.index.constant[x] for x in add.values) else NO_PATH)

    def _is_residual(self, shortcut: fx.Node, branch: fx.Node) -> bool:
        """Whether two terms that cannot be taken apart are a shortcut and its branch."""
        span = self.walk.between(self.index.strip_scaled(shortcut)[0], branch)
        return span.reached and span.weighted

    def _accept(self, site: Draft) -> None:
        if (first := first_of_pair(self.walk, site)) is not None:
            self.skips = [s for s in self.skips if s.node is not first.node]
            self._enter(first)
        self._enter(site)

    def _enter(self, site: Draft) -> None:
        """Take a site in, as the next of the stream whose state it adds to."""
        index, chain = self.index, self.walk.chain
        self.drafts.append(site)
        self.walk.site_of[site.node] = site
        self.walk.forks.add(site.fork)
        start = index.read(site.node, site.shortcut)
        rows, whole = index.rows(start), index.strip(start)
        if rows is not None or (index.name[whole] == "cat" and whole is not site.fork and site.form == "identity"):
            chain[site.node] = (rows or whole, 1)  # some tokens of a state, or more of them: a stream of its own
            return
        state = site.fork if site.form != "parallel" else index.strip(site.shortcut)
        root, depth = self.walk.stream_at(state) or (state, 0)
        if site.form in ("projection", "resampled"):
            root, depth = site.node, -1
        else:
            chain.setdefault(site.fork, (root, depth))
        chain[site.node] = (root, depth + 1)

    def _refuse(self, node: fx.Node, reason: str) -> None:
        self.skips.append(Skip(owner(node), source_line(node), reason, REMEDIES.get(reason, ""), node=node))
