"""Finding residual adds: every add of the graph becomes a :class:`Site` or a :class:`Skip` with a reason.

An add is residual when one operand (the shortcut), stripped of operators that only rearrange, is a fork ``u``
from which the other operand (the branch) was computed through at least one weighted operator. :mod:`.walk` walks back
from the branch to the fork; :mod:`.forms` has one file for each way in which the two are written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import fx, nn

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
    REMEDIES,
    explain,
)
from .settle import misleading, order_sites
from .site import Site, Skip, Stream
from .streams import streams_of
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
            if self.index.name[node] == "add" and len(self.walk.operands(node)) == 2:
                self._visit(node)
        for node, reason in (dropped := misleading(self.drafts, self.walk)).items():
            self._refuse(node, reason)
        self.drafts = order_sites([s for s in self.drafts if s.node not in dropped], self.walk)
        self.skips.sort(key=lambda s: self.index.position[s.node])  # type: ignore[index]
        return self

    def _visit(self, node: fx.Node) -> None:
        found = self._implausible(node) or self._form(node)
        if isinstance(found, Draft):
            self._accept(found)
        else:
            self._refuse(node, explain(node, self.walk.operands(node), found, self.index))

    def _implausible(self, node: fx.Node) -> str | None:
        kind, index = dtype(node), self.index
        if node not in index.alive:
            return DEAD
        left, right = self.walk.operands(node)
        if kind is not None and not kind.is_floating_point and kind is not torch.complex64:
            return INTEGER
        if same_shape(left, right) is False or same_shape(left, node) is False:
            return BROADCAST
        if (rank := index.rank(node)) is not None and rank < 2:
            return BROADCAST
        return OVERWRITTEN if node in index.observed else None

    def _form(self, node: fx.Node) -> Draft | str:
        """The site of an add in the first form that fits, or why none does."""
        walk = self.walk
        left, right = walk.operands(node)
        orders = ((left, right), (right, left))
        reasons: set[str] = set()
        for scaled in (False, True):
            for shortcut, branch in orders:
                plain = plain_form(walk, node, shortcut, branch, scaled)
                if isinstance(plain, Draft) or plain is MERGED:
                    return plain
                if plain is not None:
                    reasons.add(plain)
        for shortcut, branch in orders:
            if (parallel := parallel_form(walk, node, shortcut, branch)) is not None:
                return parallel
        for shortcut, branch in orders:
            if FOREIGN in reasons and (coupled := coupled_form(walk, node, shortcut, branch)) is not None:
                return coupled
            if (joined := joined_form(walk, node, shortcut, branch)) is not None:
                return joined
        for shortcut, branch in orders:
            if (projected := projection_form(walk, node, shortcut, branch)) is not None:
                return projected
        closer = next((r for r in (ELEMENTWISE, FOREIGN) if r in reasons), None)
        return closer or (CONSTANT if self.index.constant[left] or self.index.constant[right] else NO_PATH)

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
        start = index.read(site.node, site.shortcut)
        rows, whole = index.rows(start), index.strip(start)
        if rows is not None or (index.name[whole] == "cat" and whole is not site.fork and site.form == "identity"):
            chain[site.node] = (rows or whole, 1)  # some tokens of a state, or more of them: a stream of its own
            return
        state = site.fork if site.form != "parallel" else index.strip(site.shortcut)
        root, depth = self._origin(state)
        if site.form in ("projection", "resampled"):
            root, depth = site.node, -1
        else:
            chain.setdefault(site.fork, (root, depth))
        chain[site.node] = (root, depth + 1)

    def _origin(self, state: fx.Node) -> tuple[fx.Node, int]:
        """The stream a state belongs to: through norms, activations and masks to the last add, else a new stream."""
        found = self._carried(state, 12)
        return found if found is not None else (state, 0)

    def _carried(self, node: fx.Node, turns: int) -> tuple[fx.Node, int] | None:
        index, chain = self.index, self.walk.chain
        while node not in chain:
            inputs = [x for x in index.data[node] if not index.constant[x]] or index.data[node]
            role = index.role[node]
            if role == "norm":
                inputs = inputs[:1]
            keeps = role in ("pass", "norm", "act", "scale") or (index.name[node] == "add" and len(inputs) == 1)
            if not keeps or not inputs:
                return None
            if len(inputs) > 1:
                # A product of two states belongs to neither stream; one with a mask or a gate to the state's.
                found = {f for x in inputs if turns and (f := self._carried(x, turns // 2)) is not None}
                return found.pop() if role == "scale" and len(found) == 1 else None
            node = inputs[0]
        return chain[node]

    def _refuse(self, node: fx.Node, reason: str) -> None:
        self.skips.append(Skip(owner(node), source_line(node), reason, REMEDIES.get(reason, ""), node=node))
