"""The walk from a branch back to its fork, past the adds that were found before.

It stops at residual adds already found and jumps to where their stream began, which keeps the whole search linear in
the number of nodes for streams that are not nested.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx, nn

from resfx.passes.find.branches.features import describe_site

from . import operators as ops
from .draft import Draft
from .graph import calls_of, owner, same_shape, source_line, source_lines
from .index import Index
from .terms import Reading, Sum


@dataclass(eq=False)
class Span:
    """What lies between a fork and the branch operand of an add.

    Attributes:
        nodes: those on a way from the fork to the branch, in graph order.
        sites: adds of other streams, or of this one, on such a way.
        weighted: such a way mixes features with learned weights, normalises or pools.
        reached: there is such a way.
        foreign: adds of streams older than the fork, or of one that the fork is only an input of.
        chosen: something on the way was picked by its place, as a quantiser picks its code.
    """

    nodes: list[fx.Node] = field(default_factory=list)
    sites: list[Draft] = field(default_factory=list)
    weighted: bool = False
    reached: bool = False
    foreign: list[Draft] = field(default_factory=list)
    chosen: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether a branch with weights leads from fork to add, without another add in it."""
        return self.reached and self.weighted and not self.sites


@dataclass(eq=False)
class Walk:
    """What a search knows of a graph so far.

    Attributes:
        root: the module tree of ``call_module`` nodes and parameters.
        site_of: the adds found residual.
        chain: per state of a stream, the stream's root and how many adds lead from there.
        sums: the additions looked at.
        forks: where the branches of the adds found residual start.
    """

    index: Index
    root: nn.Module | None = None
    site_of: dict[fx.Node, Draft] = field(default_factory=dict)
    chain: dict[fx.Node, tuple[fx.Node, int]] = field(default_factory=dict)
    sums: dict[fx.Node, Sum] = field(default_factory=dict)
    forks: set[fx.Node] = field(default_factory=set)

    def between(self, fork: fx.Node, branch: fx.Node) -> Span:
        """Walk back from ``branch`` over nodes later than ``fork``."""
        index, found = self.index, Span()
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
        self._keep_paths(fork, branch, found, jumps)
        return found

    def _jump(self, site: Draft, fork: fx.Node) -> fx.Node | bool:
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

    def _keep_paths(self, fork: fx.Node, branch: fx.Node, found: Span, jumps: dict[fx.Node, fx.Node | bool]) -> None:
        """Keep what the fork's value reaches, and note whether it reaches the branch, and through weights."""
        index = self.index
        reaches: dict[fx.Node, bool] = {fork: False}  # reached -> through a weighted operator
        scores: set[fx.Node] = set()  # computed from a softmax of what was reached: attention's weights are activations
        shared: set[fx.Node] = set()  # the fork's value plus another one, and nothing more
        for node in found.nodes:
            if node in jumps:
                jump = jumps[node]
                if jump in shared:  # the fork is an input of a stream that has another state
                    found.foreign.append(self.site_of[node])
                elif jump is True or (isinstance(jump, fx.Node) and jump in reaches):
                    reaches[node] = True
                continue
            inputs = index.data[node]
            before = [x for x in inputs if x in reaches]
            if not before or not index.carries(node):
                found.chosen |= bool(before) and index.chooses(node)
                continue
            if index.name[node] in ops.SOFTMAX or not scores.isdisjoint(inputs):
                scores.add(node)
            weighted = index.is_weighted(node) or index.is_attention(node, node in scores)
            reaches[node] = weighted or any(reaches[x] for x in before)
            if not reaches[node] and (not shared.isdisjoint(before) or self._takes_another(node, reaches)):
                shared.add(node)
        found.reached, found.weighted = branch in reaches, reaches.get(branch, False)
        found.nodes = [n for n in found.nodes if n in reaches]
        found.sites = [s for s in found.sites if s.node in reaches]

    def stream_at(self, node: fx.Node, turns: int = 12) -> tuple[fx.Node, int] | None:
        """The stream a state belongs to, through norms, activations and masks: its root, and how deep."""
        index, chain = self.index, self.chain
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
                found = {f for x in inputs if turns and (f := self.stream_at(x, turns // 2)) is not None}
                return found.pop() if role == "scale" and len(found) == 1 else None
            node = inputs[0]
        return chain[node]

    def _takes_another(self, node: fx.Node, reaches: Collection[fx.Node]) -> bool:
        """Whether a node adds a state to what was reached: one that is not the same everywhere."""
        others = [x for x in self.index.data[node] if x not in reaches and not self.index.constant[x]]
        return self.index.name[node] == "add" and any(same_shape(x, node) is not False for x in others)

    def draft(self, add: Reading, fork: fx.Node, form: str, found: Span, entry: fx.Node | None = None) -> Draft:
        """The site of an add; ``entry`` is what its branch starts from where that is not the fork."""
        adder = owner(add.node)
        site = Draft(node=add.node, shortcut=add.shortcut.value, branch=add.branch.value,
                     terms=(add.shortcut, add.branch), joins=add.joins, fork=fork, form=form, owner=adder,
                     line=source_line(add.node), lines=source_lines(add.node), calls=calls_of(found.nodes, adder),
                     inner=found.sites)  # fmt: skip
        describe_site(site, found.nodes, self.index, self.root, entry or fork)
        own = self.site_of.get(fork)
        site.lane = own.lane if own is not None else 0
        return site
