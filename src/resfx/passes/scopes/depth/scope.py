"""Graph surgery for methods of scope ``depth``: reads over the sources of a stream at its sublayer or block inputs.

A read is a call of the method's module on a list of sources and the state the host reads there; the readers that the
method names then read the result. Sums of sources are made once and shared.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from resfx.methods.depth.base import DepthMethod
from resfx.passes.find.index import Index
from resfx.passes.find.site import Site, Stream
from resfx.passes.scopes.site import out_of_place

from .chain import Chain, Step, chain_of
from .readers import ROLES, Readers

Groups = tuple[tuple[int, ...], ...]

Bank = Callable[[str, Site, dict[str, Any] | None], str]
"""Makes sure that a module stands in the model's tree: (kind of module, site, facts of the read) -> its path."""


class Cursor:
    """Emits nodes in order, each behind everything it uses."""

    def __init__(self, graph: fx.Graph, like: fx.Node, owner: Site, method: str, created: set[fx.Node]) -> None:
        self.graph, self.anchor, self.created = graph, like, created
        skip = ("from_node", "val", "tensor_meta", "example_value")
        meta = {k: v for k, v in owner.node.meta.items() if k not in skip}
        self.meta = {**meta, "val": like.meta.get("val"), "resfx": method}

    def inside(self) -> None:
        """What follows belongs to the block of its site, and does not stand between blocks."""
        self.meta["resfx_inside"] = True

    def after(self, nodes: Iterable[fx.Node]) -> None:
        """Go on behind the last of ``nodes``."""
        for node in nodes:
            self.anchor = max(self.anchor, node)

    def emit(self, op: str, target: Any, *args: Any) -> fx.Node:
        """A new node behind the last one."""
        with self.graph.inserting_after(self.anchor):
            node = self.graph.create_node(op, target, args)
        node.meta = dict(self.meta)
        self.anchor = node
        self.created.add(node)
        return node


@dataclass(eq=False)
class Planned:
    """A place where a method may read.

    Attributes:
        number: how many units lie before it.
        size: how many sublayers the unit behind it has.
        site, step: of the sublayer behind it, or of the last one.
        state: what the host reads there.
        groups: the sources by number, or ``None`` for no read.
        ahead: those of them that are taken in together with other reads.
    """

    number: int
    last: bool
    size: int
    site: Site
    step: Step
    state: fx.Node
    groups: list[tuple[int, ...]] | None
    ahead: Groups = ()


class StreamRewriter:
    """Puts the reads of one method into one stream."""

    def __init__(
        self, graph: fx.Graph, chain: Chain, method: DepthMethod, bank: Bank, index: Index, tree: nn.Module
    ) -> None:
        self.graph, self.chain, self.method, self.bank, self.index = graph, chain, method, bank, index
        self.tree = tree
        self.name = method.label
        self.sums: dict[tuple[fx.Node, ...], fx.Node] = {}
        self.projected: dict[fx.Node, fx.Node] = {}
        self.created: set[fx.Node] = set()  # nodes of the rewrite itself keep what they read
        self.shift: tuple[fx.Node, fx.Node] | None = None  # the running sum at the last read, and what it was made to
        self.together: dict[Groups, list[Planned]] = {}  # reads that take the same sources in ahead
        self.ahead: dict[Groups, list[fx.Node]] = {}

    def run(self, wanted: Collection[Site]) -> int:
        """Insert every read whose site is wanted (the last site has the one at the end too); returns how many."""
        method, chain = self.method, self.chain
        units = [[s] for s in chain.steps] if method.unit == "sublayer" else chain.blocks
        for step in chain.steps:
            for site in step.sites:
                out_of_place(site.node)
        plan = self._plan(units, wanted)
        elements: list[tuple[fx.Node, ...]] = []
        for read in plan:
            if method.carries == "states" or read.number == 0:
                elements.append((read.state,))
            else:
                elements.append(tuple(n for s in units[read.number - 1] for n in self._outputs(s, read.site)))
            if read.groups is not None:
                self._read(read, elements)
        return sum(r.groups is not None for r in plan)

    def _plan(self, units: list[list[Step]], wanted: Collection[Site]) -> list[Planned]:
        """A place for a read before every unit and at the end."""
        plan: list[Planned] = []
        for number in range(len(units) + 1):
            last = number == len(units)
            unit = units[-1 if last else number]
            step = unit[-1 if last else 0]
            site = [s for t in unit for s in t.sites if s.form != "mixer" or len(unit) == 1][-1 if last else 0]
            groups = self.method.sources(number, last) if site in wanted else None
            read = Planned(number, last, len(unit), site, step, self.chain.end if last else step.state, groups)
            if groups is not None:
                read.ahead = tuple(groups[: self.method.ahead(number)])
                self.together.setdefault(read.ahead, []).append(read)
            plan.append(read)
        return plan

    def _read(self, read: Planned, elements: list[tuple[fx.Node, ...]]) -> None:
        assert read.groups is not None
        targets = self.method.targets(read.last)
        sources = [[n for j in g for n in elements[j]] for g in read.groups]
        first = len(read.ahead)
        ahead = [self._read_ahead(read, sources[:first])] if first else []
        cursor = Cursor(self.graph, read.state, read.site, self.name, self.created)
        if ahead and not read.last:  # such reads are the same in every block
            cursor.inside()
        cursor.after([*(n for group in sources[first:] for n in group), *ahead])
        x = self._running_sum(read.state, cursor)
        rows = [self._project(self._sum(group, cursor), cursor) for group in sources[first:]]
        call = cursor.emit("call_module", self._module(read), rows, x, *ahead)
        results = {targets[0]: call}
        if len(targets) > 1:
            parts = [cursor.emit("call_function", operator.getitem, call, i) for i in range(len(targets))]
            named = zip(targets, parts, strict=True)
            results = {role: part for t, part in named for role in (t if set(t) <= {*ROLES, "r"} else [t])}
            call.meta.pop("val")
        self._hand_on(read, x, results)

    def _hand_on(self, read: Planned, x: fx.Node, results: dict[str, fx.Node]) -> None:
        """Give the results of a read to the readers that the method names."""
        step = read.step
        readers = Readers(self.graph, read.state, self.index, self.created)
        if "stream" in results:
            readers.redirect_all(results["stream"])
        elif "input" in results:
            ends = [part.read() for s in step.sites for part in s.terms[1].parts]
            readers.redirect_branch(ends, results["input"])
            if "shortcut" in results:
                readers.redirect_all(results["shortcut"])
        else:
            readers.redirect_roles(step.sites, results)
        into = results.get("stream") or results.get("shortcut") or results.get("r")
        if into is not None and not read.last:
            step.into = into
            if self.method.carries == "outputs":
                self.shift = (x, into)

    def _module(self, read: Planned) -> str:
        """The path of a read's module."""
        assert read.groups is not None
        facts = {"read": read.number, "sources": len(read.groups), "last": read.last,
                 "outputs": len(self.method.targets(read.last)), "sublayers": read.size}  # fmt: skip
        return self.bank("exit" if read.last else "read", read.site, facts)

    def _read_ahead(self, read: Planned, sources: list[list[fx.Node]]) -> fx.Node:
        """What one read is handed of the sources that it shares: taken in once, at the first of the reads."""
        members = self.together[read.ahead]
        if read.ahead not in self.ahead:
            cursor = Cursor(self.graph, read.state, read.site, self.name, self.created)
            cursor.after(n for group in sources for n in group)
            rows = [self._project(self._sum(group, cursor), cursor) for group in sources]
            asks = []
            for path in [self._module(member) for member in members]:
                names = [n for n, _ in self.tree.get_submodule(path).named_parameters()]
                asks.append([cursor.emit("get_attr", f"{path}.{name}") for name in names])
            call = cursor.emit("call_module", self.bank("ahead", read.site, None), rows, asks)
            parts = [cursor.emit("call_function", operator.getitem, call, i) for i in range(len(members))]
            for node in (call, *parts):
                node.meta.pop("val")
            self.ahead[read.ahead] = parts
        return self.ahead[read.ahead][members.index(read)]

    def _running_sum(self, state: fx.Node, cursor: Cursor) -> fx.Node:
        """What the stream would hold had earlier reads not been written to it: the base of a preserving read."""
        if self.shift is None or self.method.start != "preserve" or self.chain.post_norm:
            return state
        difference = cursor.emit("call_function", torch.ops.aten.sub.Tensor, *self.shift)
        return cursor.emit("call_function", torch.ops.aten.add.Tensor, state, difference)

    def _outputs(self, step: Step, site: Site) -> list[fx.Node]:
        """What a step added: its branches, or the difference where another method replaced the add."""
        if all(s.result is None and s.is_plain for s in step.sites):
            return [s.branch for s in step.sites]
        cursor = Cursor(self.graph, step.after, site, self.name, self.created)
        return [cursor.emit("call_function", torch.ops.aten.sub.Tensor, step.after, step.into)]

    def _sum(self, nodes: list[fx.Node], cursor: Cursor) -> fx.Node:
        """The sum of some outputs, built on the longest part of it that an earlier read needed."""
        total, done = nodes[0], 1
        for size in range(len(nodes), 1, -1):
            if (known := self.sums.get(tuple(nodes[:size]))) is not None:
                total, done = known, size
                break
        cursor.after([total])
        for size in range(done + 1, len(nodes) + 1):
            total = cursor.emit("call_function", torch.ops.aten.add.Tensor, total, nodes[size - 1])
            self.sums[tuple(nodes[:size])] = total
        return total

    def _project(self, source: fx.Node, cursor: Cursor) -> fx.Node:
        site = self.chain.steps[0].sites[0]
        path = self.bank("shared", site, None)
        if not path:
            return source
        if source not in self.projected:
            self.projected[source] = cursor.emit("call_module", path, source)
        cursor.after([self.projected[source]])
        return self.projected[source]


def rewrite_stream(
    graph: fx.Graph, stream: Stream, wanted: Collection[Site], method: DepthMethod, bank: Bank, tree: nn.Module
) -> str | None:
    """Put a method's reads into one stream; returns the reason where it cannot act on it, and changes nothing then."""
    if any(s.axis != -1 for s in stream.sites):
        return "a channel-first stream: depth methods read features on the last axis"
    index = Index(graph, tree)
    chain = chain_of(stream, index)
    if isinstance(chain, str):
        return chain
    if (reason := method.refuse_stream(chain.post_norm)) is not None:
        return reason
    if not {"stream", "input"} & set(method.targets(False)):
        for block in chain.blocks:
            if isinstance(found := Readers(graph, block[0].state, index, ()).attention(block[0].sites), str):
                return found
    if not StreamRewriter(graph, chain, method, bank, index, tree).run(wanted):
        return "no place in this stream where the method reads"
    return None
