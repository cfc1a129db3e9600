"""Finding residual adds: every add of the graph becomes a :class:`Site` or a :class:`Skip` with a reason.

An add is residual when one operand (the shortcut), stripped of operators that only rearrange, is a fork ``u``
from which the other operand (the branch) was computed through at least one weighted operator. The walk from the
branch back to the fork stops at residual adds already found and jumps to where their stream began, which keeps
the whole search linear in the number of nodes for streams that are not nested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from resfx.passes.find.forms.coupled import coupled_form, first_of_pair, joined_form, only_opens
from resfx.passes.find.forms.projections import projection_form

from . import operators as ops
from .features import describe_site, opening_norm, settle_axes
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
    NESTED_SCALED,
    NO_PATH,
    OPENS,
    OVERWRITTEN,
    REINJECTED,
    REMEDIES,
    explain,
)
from .site import Site, Skip


@dataclass
class Branch:
    """What lies between a fork and the branch operand of an add."""

    nodes: list[fx.Node] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    weighted: bool = False
    reached: bool = False
    foreign: list[Site] = field(default_factory=list)  # adds of streams older than the fork


class Detector:
    """One search over one graph. ``sites`` and ``skips`` are in graph order."""

    def __init__(self, graph: fx.Graph, root: nn.Module | None = None) -> None:
        self.index = Index(graph, root)
        self.root = root
        self.sites: list[Site] = []
        self.skips: list[Skip] = []
        self.site_of: dict[fx.Node, Site] = {}
        self.chain: dict[fx.Node, tuple[fx.Node, int]] = {}  # state -> (root of its stream, depth)

    def run(self) -> Detector:
        """Visit every add in order, then settle what only the whole graph can tell."""
        for node in self.index.nodes:
            if self.index.name[node] == "add" and len(self.operands(node)) == 2:
                self._visit(node)
        self._settle()
        return self

    def operands(self, node: fx.Node) -> list[fx.Node]:
        operands = list(node.args) + [node.kwargs[k] for k in ("other",) if k in node.kwargs]
        return [a for a in operands[:2] if isinstance(a, fx.Node) and self.index._is_tensor(a)]

    def _visit(self, node: fx.Node) -> None:
        reason = self._implausible(node)
        if reason is None:
            for found in self._forms(node):
                if isinstance(found, Site):
                    self._accept(found)
                    return
                reason = reason or found
        self._refuse(node, explain(node, self.operands(node), reason or NO_PATH, self.index))

    def _implausible(self, node: fx.Node) -> str | None:
        kind, index = dtype(node), self.index
        if node not in index.alive:
            return DEAD
        left, right = self.operands(node)
        if kind is not None and not kind.is_floating_point and kind is not torch.complex64:
            return INTEGER
        if same_shape(left, right) is False or same_shape(left, node) is False:
            return BROADCAST
        if (rank := index.rank(node)) is not None and rank < 2:
            return BROADCAST
        return OVERWRITTEN if node in index.observed else None

    def _forms(self, node: fx.Node) -> Iterator[Site | str]:
        left, right = self.operands(node)
        orders = ((left, right), (right, left))
        reasons: list[str] = []
        for scaled in (False, True):
            for shortcut, branch in orders:
                state = self.index.read(node, shortcut)
                fork, was_scaled = self.index.strip_scaled(state)
                if not scaled:
                    fork, was_scaled = self.index.strip(state), False
                elif not was_scaled:
                    continue
                found = self.between(fork, branch)
                if found.reached and found.weighted:
                    if not was_scaled and self._merged(fork, branch):
                        yield MERGED
                        return
                    if self._other_slice(state, fork, found):
                        continue
                    yield self.site(node, shortcut, branch, fork, "scaled" if was_scaled else "identity", found)
                reasons.append(self._why_not(found))
        for shortcut, branch in orders:
            if parallel := self._climb(node, shortcut, branch):
                yield parallel
        for shortcut, branch in orders:
            if FOREIGN in reasons and (coupled := coupled_form(self, node, shortcut, branch)):
                yield coupled
            if joined := joined_form(self, node, shortcut, branch):
                yield joined
        for shortcut, branch in orders:
            if projected := projection_form(self, node, shortcut, branch):
                yield projected
        yield next(
            (r for r in (ELEMENTWISE, FOREIGN) if r in reasons),
            CONSTANT if self.index.constant[left] or self.index.constant[right] else NO_PATH,
        )

    @staticmethod
    def _why_not(found: Branch) -> str:
        return ELEMENTWISE if found.reached else FOREIGN if found.foreign else NO_PATH

    # -- walking -------------------------------------------------------------------------------------------------

    def between(self, fork: fx.Node, branch: fx.Node) -> Branch:
        """Walk back from ``branch`` over nodes later than ``fork``."""
        index, found = self.index, Branch()
        start = index.position[fork]
        if index.position[branch] <= start:
            return found
        jumps: dict[fx.Node, fx.Node | bool] = {}
        stack, seen = [branch], {branch}
        while stack:
            node = stack.pop()
            if node is fork or index.position[node] < start:
                continue
            found.nodes.append(node)
            onward = index.data[node]
            if (site := self.site_of.get(node)) is not None:
                jumps[node] = jump = self._jump(site, fork)
                found.sites.append(site)
                found.foreign += [site] if jump is False else []
                onward = [jump] if isinstance(jump, fx.Node) else []
            for x in onward:
                if x not in seen:
                    seen.add(x)
                    stack.append(x)
        found.nodes.sort(key=index.position.__getitem__)
        self._mark_paths(fork, branch, found, jumps)
        return found

    def _jump(self, site: Site, fork: fx.Node) -> fx.Node | bool:
        """From a residual add inside a branch: ``True`` if its stream passes through ``fork``, ``False`` if the
        stream is older than ``fork``, else the node where the stream began."""
        root, depth = self.chain[site.node]
        if (own := self.site_of.get(fork)) is not None and own.lane != site.lane:
            return False
        if fork in self.chain and self.chain[fork][0] is root and self.chain[fork][1] < depth:
            return True
        if root in self.site_of:  # a projection starts a stream, out of what it projects
            root = self.site_of[root].fork
        return False if self.index.position[root] < self.index.position[fork] else root

    def _mark_paths(self, fork: fx.Node, branch: fx.Node, found: Branch, jumps: dict[fx.Node, fx.Node | bool]) -> None:
        reaches: dict[fx.Node, bool] = {fork: False}  # reached -> through a weighted operator
        for node in found.nodes:
            if node in jumps:
                jump = jumps[node]
                if jump is True or (isinstance(jump, fx.Node) and jump in reaches):
                    reaches[node] = True
                continue
            before = [reaches[x] for x in self.index.data[node] if x in reaches]
            if before:
                reaches[node] = any(before) or self.index.is_weighted(node)
        found.reached, found.weighted = branch in reaches, reaches.get(branch, False)
        found.nodes = [n for n in found.nodes if n in reaches]
        found.sites = [s for s in found.sites if s.node in reaches]

    # -- forms ---------------------------------------------------------------------------------------------------

    def _climb(self, node: fx.Node, shortcut: fx.Node, branch: fx.Node) -> Site | None:
        """``(x + attention) + mlp``: the second branch starts where the first one did."""
        state = self.index.strip(shortcut)
        for _ in range(3):
            site = self.site_of.get(state)
            if site is None or site.form in ("projection", "resampled"):
                return None
            found = self.between(site.fork, branch)
            if found.reached and found.weighted and not found.sites:
                return self.site(node, shortcut, branch, site.fork, "parallel", found)
            state = site.fork
        return None

    def _other_slice(self, shortcut: fx.Node, fork: fx.Node, found: Branch) -> bool:
        """Whether the shortcut is a slice of the fork, and the branch only reads other slices."""
        index, node = self.index, shortcut
        cuts: set[tuple[object, ...]] = set()
        while node is not fork and index.data[node]:
            if index.name[node] in ops.SLICES:
                cuts.add(node.args[1:])
            node = index.data[node][0]
        if not cuts:
            return False
        entries = [n for n in found.nodes if fork in index.data[n]]
        return all(index.name[n] in ops.SLICES and n.args[1:] not in cuts for n in entries)

    def _merged(self, fork: fx.Node, branch: fx.Node) -> bool:
        """Whether the branch is a sum of several plain convolutions of the fork: one convolution, written apart."""
        index = self.index
        stack, terms = [branch], 0
        while stack:
            node = index.strip(stack.pop())
            inputs = [x for x in index.data[node] if not index.constant[x]]
            if node is fork:
                terms += 1
            elif index.name[node] == "add" and node not in self.site_of:
                stack += inputs
            elif index.name[node] in ops.CONV or index.name[node] == "batch_norm":
                stack += inputs[:1]
            else:
                return False
        return terms > 1

    # -- accepting -----------------------------------------------------------------------------------------------

    def site(
        self, node: fx.Node, shortcut: fx.Node, branch: fx.Node, fork: fx.Node, form: str, found: Branch,
        entry: fx.Node | None = None,
    ) -> Site:  # fmt: skip
        """The site of an add; ``entry`` is what its branch starts from where that is not the fork."""
        site = Site(node=node, shortcut=shortcut, branch=branch, fork=fork, form=form, owner=owner(node),
                    line=source_line(node), inner=found.sites)  # fmt: skip
        describe_site(site, found.nodes, self.index, self.root, entry or fork)
        own = self.site_of.get(fork)
        site.lane = own.lane if own is not None else 0
        return site

    def _accept(self, site: Site) -> None:
        if (first := first_of_pair(self, site)) is not None:
            self.skips = [s for s in self.skips if s.node is not first.node]
            self._enter(first)
        self._enter(site)

    def _enter(self, site: Site) -> None:
        self.sites.append(site)
        self.site_of[site.node] = site
        start = self.index.read(site.node, site.shortcut)
        rows, whole = self.index.rows(start), self.index.strip(start)
        if rows is not None or (self.index.name[whole] == "cat" and whole is not site.fork and site.form == "identity"):
            self.chain[site.node] = (rows or whole, 1)  # some tokens of a state, or more of them: a stream of its own
            return
        state = site.fork if site.form != "parallel" else self.index.strip(site.shortcut)
        root, depth = self._origin(state)
        if site.form in ("projection", "resampled"):
            root, depth = site.node, -1
        else:
            self.chain.setdefault(site.fork, (root, depth))
        self.chain[site.node] = (root, depth + 1)

    def _origin(self, state: fx.Node) -> tuple[fx.Node, int]:
        """The stream a state belongs to: through norms, activations and masks to the last add, else a new stream."""
        found = self._carried(state, 12)
        return found if found is not None else (state, 0)

    def _carried(self, node: fx.Node, turns: int) -> tuple[fx.Node, int] | None:
        index = self.index
        while node not in self.chain:
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
        return self.chain[node]

    def _refuse(self, node: fx.Node, reason: str) -> None:
        self.skips.append(Skip(owner(node), source_line(node), reason, REMEDIES.get(reason, ""), node=node))

    def _settle(self) -> None:
        """Drop what only looked residual from nearby, then number sites within their owner."""
        bare: dict[fx.Node, list[Site]] = {}
        for site in self.sites:
            if site.inner and self.index.strip_scaled(site.branch)[0] in self.site_of:
                bare.setdefault(site.fork, []).append(site)
        dropped = {s.node: REINJECTED for group in bare.values() if len(group) > 1 for s in group}
        for site in self.sites:
            for inner in site.inner:
                if inner.form == "scaled" and inner.fork is not site.fork:
                    dropped[inner.node] = NESTED_SCALED
                elif only_opens(self, inner, site):
                    dropped[inner.node] = OPENS
                    nodes = self.between(site.fork, site.branch).nodes
                    site.context = site.context or opening_norm(nodes, inner.node, self.index)
        for site in self.sites:
            if site.node in dropped:
                self._refuse(site.node, dropped[site.node])
        self.sites = sorted((s for s in self.sites if s.node not in dropped), key=lambda s: self.index.position[s.node])
        self.skips.sort(key=lambda s: self.index.position[s.node])  # type: ignore[index]
        counts: dict[str, int] = {}
        for site in self.sites:
            site.root, site.depth = self.chain[site.node]
            site.order = counts.get(site.owner, 0)
            counts[site.owner] = site.order + 1
        settle_axes(self.sites)
        self._nest(dropped)

    def _nest(self, dropped: dict[fx.Node, str]) -> None:
        """Say which sites lie inside which. A branch knows the last add of a stream within it; the earlier ones
        are that stream's, back to the fork."""
        before: dict[fx.Node, Site] = {}
        previous: dict[Site, Site | None] = {}
        for site in self.sites:
            assert site.root is not None
            previous[site] = before.get(site.root)
            before[site.root] = site
        for site in self.sites:
            site.inner = [s for s in site.inner if s.node not in dropped]
            start = self.index.position[site.fork]
            for inner in site.inner:
                site.is_outer |= inner.root is site.root or inner.depth >= 2
                step: Site | None = inner
                while step is not None and step.inside is None and self.index.position[step.node] > start:
                    step.inside = site
                    step = previous[step]


def find_sites(graph: fx.Graph, root: nn.Module | None = None) -> tuple[list[Site], list[Skip]]:
    """Every add of ``graph`` as a site or a skip, each list in graph order.

    Args:
        graph: a captured or symbolically traced graph; shapes are used where its nodes carry them.
        root: the module tree of ``call_module`` nodes and parameters.
    """
    detector = Detector(graph, root).run()
    return detector.sites, detector.skips
