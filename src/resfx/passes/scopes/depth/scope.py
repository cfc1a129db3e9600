"""Graph surgery for methods of scope ``depth``: reads over the sources of a stream at its sublayer or block inputs.

A read is a call of the method's module on a list of sources and the state the host reads there; the readers that the
method names then read the result. Sums of sources are made once and shared.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from resfx.errors import NoSitesError, VariantError
from resfx.methods.depth.base import DepthMethod, DepthPlace
from resfx.passes.find.index import Index
from resfx.passes.find.mark import Mark, note
from resfx.passes.find.site import Site, Stream
from resfx.passes.scopes.insert import dress, inserting_behind, out_of_place
from resfx.passes.scopes.places import place_at
from resfx.passes.scopes.rows import from_rows, to_rows, value_in_rows
from resfx.passes.scopes.surgery import Turn, reasons_of

from .chain import Chain, Step, chain_of
from .readers import ROLES, Readers

Groups = tuple[tuple[int, ...], ...]


class Cursor:
    """Emits nodes in order, each behind everything it uses."""

    def __init__(self, graph: fx.Graph, like: fx.Node, owner: Site, mark: Mark, created: set[fx.Node]) -> None:
        self.graph, self.anchor, self.created = graph, like, created
        self.owner, self.value, self.mark = owner, like.meta.get("val"), mark

    def after(self, nodes: Iterable[fx.Node]) -> None:
        """Go on behind the last of ``nodes``."""
        for node in nodes:
            self.anchor = max(self.anchor, node)

    def emit(self, op: str, target: Any, *args: Any) -> fx.Node:
        """A new node behind the last one."""
        with self.graph.inserting_after(self.anchor):
            node = self.graph.create_node(op, target, args)
        node.meta["val"] = self.value
        self._made(node)
        return node

    def make(self, nodes: Callable[[], fx.Node]) -> fx.Node:
        """What ``nodes`` makes behind the last one; each knows its own type."""
        with inserting_behind(self.graph, self.anchor) as made:
            last = nodes()
        for node in made:
            self._made(node)
        return last

    def _made(self, node: fx.Node) -> None:
        dress(node, self.owner.node, self.mark, "tensor_meta", "example_value", "val")
        self.anchor = node
        self.created.add(node)

    def call(self, role: str, path: str, *args: Any) -> fx.Node:
        """A call of the new module that has a role."""
        node = self.emit("call_module", path, *args)
        note(node, role=role)
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

    def __init__(self, turn: Turn, chain: Chain, method: DepthMethod, index: Index) -> None:
        self.turn, self.chain, self.method, self.index = turn, chain, method, index
        self.graph, self.tree = turn.surgery.graph, turn.surgery.tree
        self.axis = chain.steps[0].sites[0].axis
        self.replaced = turn.surgery.replaced
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
        # Reads that are handed sums made ahead are the same in every block.
        cursor = self._cursor(read.state, read.site, inside=bool(ahead) and not read.last)
        cursor.after([self._readers(read).inner, *(n for group in sources[first:] for n in group), *ahead])
        x = self._running_sum(read.state, cursor)
        rows = [self._project(self._sum(group, cursor), cursor) for group in sources[first:]]
        call = cursor.call(_role(read), self._module(read), rows, self._rows(x, cursor), *ahead)
        parts = [call]
        if len(targets) > 1:
            parts = [cursor.emit("call_function", operator.getitem, call, i) for i in range(len(targets))]
            call.meta.pop("val")
        named = zip(targets, [self._back(part, read.state, cursor) for part in parts], strict=True)
        self._hand_on(read, x, {role: part for t, part in named for role in (t if set(t) <= {*ROLES, "r"} else [t])})

    def _rows(self, node: fx.Node, cursor: Cursor) -> fx.Node:
        """A tensor of the stream as methods see it, with its features last."""
        return node if self.axis == -1 else cursor.make(lambda: to_rows(self.graph, node, self.axis))

    def _back(self, rows: fx.Node, like: fx.Node, cursor: Cursor) -> fx.Node:
        """What a method gave, as the host lays it out."""
        if self.axis == -1:
            return rows
        rows.meta["val"] = value_in_rows(like.meta.get("val"), self.axis)
        return cursor.make(lambda: from_rows(self.graph, rows, self.axis, like))

    def _readers(self, read: Planned) -> Readers:
        whole = read.last or self.method.targets(read.last) == ("stream",)
        return Readers(self.graph, read.state, self.index, self.created, () if whole else read.step.sites)

    def _hand_on(self, read: Planned, x: fx.Node, results: dict[str, fx.Node]) -> None:
        """Give the results of a read to the readers that the method names."""
        step = read.step
        readers = self._readers(read)
        if "stream" in results:
            readers.redirect_all(results["stream"])
        elif "input" in results:
            readers.redirect_branch([end for s in step.sites for end in s.ends], results["input"])
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
        facts: dict[str, Any] = {"read": read.number, "sources": len(read.groups), "last": read.last,
                 "outputs": len(self.method.targets(read.last)), "sublayers": read.size}  # fmt: skip
        make = lambda: self.method.build(DepthPlace(**vars(place_at(read.site, self.tree)), **facts))
        path = self.turn.module(read.site, _role(read), make, facts=facts)
        if not path:
            raise VariantError(
                f"this call needs another capture, and {self.turn.label} cannot act on it as before",
                f"at {read.site.name}: no read was made for this place", "call the model as it was captured",
            )  # fmt: skip
        return path

    def _ahead(self, site: Site) -> str:
        """The path of the module that takes sources in for several reads."""
        return self.turn.module(site, "ahead", lambda: self.method.build_ahead(place_at(site, self.tree)))

    def _cursor(self, like: fx.Node, owner: Site, inside: bool = False) -> Cursor:
        return Cursor(self.graph, like, owner, self.turn.mark(inside=inside), self.created)

    def _read_ahead(self, read: Planned, sources: list[list[fx.Node]]) -> fx.Node:
        """What one read is handed of the sources that it shares: taken in once, at the first of the reads."""
        members = self.together[read.ahead]
        if read.ahead not in self.ahead:
            cursor = self._cursor(read.state, read.site)
            cursor.after(n for group in sources for n in group)
            rows = [self._project(self._sum(group, cursor), cursor) for group in sources]
            asks = []
            for path in [self._module(member) for member in members]:
                names = [n for n, _ in self.tree.get_submodule(path).named_parameters()]
                asks.append([cursor.emit("get_attr", f"{path}.{name}") for name in names])
            call = cursor.call("ahead", self._ahead(read.site), rows, asks)
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
        if all(self.replaced.get(s.name) is None and s.is_plain for s in step.sites):
            return [s.branch for s in step.sites]
        cursor = self._cursor(step.after, site)
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
        path = self.turn.module(site, "shared", lambda: self.method.build_source(place_at(site, self.tree)))
        if not path:
            return self._rows(source, cursor)
        if source not in self.projected:
            self.projected[source] = cursor.call("shared", path, self._rows(source, cursor))
        cursor.after([self.projected[source]])
        return self.projected[source]


def _role(read: Planned) -> str:
    return "exit" if read.last else "read"


def apply_depth(turn: Turn) -> Sequence[Site]:
    """Scope ``depth``: reads at the inputs of the chosen sublayers or blocks, stream by stream."""
    asked = {site.name for site in turn.chosen}
    claimed: list[Site] = []
    for stream in turn.surgery.streams:
        wanted = [s for s in stream.sites if s.name in asked]
        if not wanted:
            continue
        reason = rewrite_stream(turn, stream, wanted)
        if reason is None:
            claimed += wanted
            for site in wanted:
                turn.change(site, "read")
        else:
            turn.leave(wanted, reason, "exclude= this stream, or take another method")
    if not claimed:
        reasons = reasons_of(turn.application.skips)
        raise NoSitesError(f"no stream to rewrite with {turn.label}", reasons, "another method, or another model")
    return claimed


def rewrite_stream(turn: Turn, stream: Stream, wanted: Collection[Site]) -> str | None:
    """Put a method's reads into one stream; returns the reason where it cannot act on it, and changes nothing then."""
    surgery, method = turn.surgery, turn.application.method
    assert isinstance(method, DepthMethod)
    index = Index(surgery.graph, surgery.tree)
    chain = chain_of(stream, index, surgery.replaced)
    if isinstance(chain, str):
        return chain
    if (reason := method.refuse_stream(chain.post_norm)) is not None:
        return reason
    if not {"stream", "input"} & set(method.targets(False)):
        for block in chain.blocks:
            readers = Readers(surgery.graph, block[0].state, index, (), block[0].sites)
            if isinstance(found := readers.attention(block[0].sites), str):
                return found
    if not StreamRewriter(turn, chain, method, index).run(wanted):
        return "no place in this stream where the method reads"
    return None
