"""Which calls of a rewritten graph run code of their own, and what crosses their borders.

Where a method changed nothing, the user's module is called as it is. A call whose own code was changed gets generated
code; where values cross its border that are neither arguments nor results (the sources of a read over depth), the call
around it gets generated code too and passes them on. A changed call with no such values is *closed*: whoever calls the
module runs it, and the calls around it stay the user's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import fx

from resfx.errors import VariantError
from resfx.passes.capture.marking.modes import is_mode
from resfx.passes.capture.marking.record import CallRecord, MethodOf, enter, keep, leave
from resfx.passes.capture.structure import Template, innermost
from resfx.passes.capture.trace import Capture
from resfx.passes.find.mark import mark_of, now
from resfx.passes.holdings import Place

from .copies import separate_copies
from .region import Region


class Plan:
    """The regions of one rewritten capture. ``root`` is the whole call; ``uses`` says what a node's operands are called
    where it reads them; ``beside``, of a module's path, whether no keyword gets through to it; ``listed``, whether code
    around it may call what it holds one after the other instead of calling it (a ``Sequential``)."""

    def __init__(
        self, capture: Capture, mixes: Callable[[fx.Node], bool] = lambda node: False,
        remembers: Callable[[fx.Node], bool] = lambda node: False, beside: Callable[[str], bool] = lambda path: False,
        listed: Callable[[str], bool] = lambda path: False,
    ) -> None:  # fmt: skip
        self.beside, self.listed = beside, listed
        self.capture, self.graph, self.mixes, self.remembers = capture, capture.graph, mixes, remembers
        self.mixing: set[Region] = set()
        self.calls = {c.number: c for c in capture.calls}
        self.region: dict[CallRecord, Region] = {}
        self.home: dict[fx.Node, Region] = {}
        self.root = self._of(capture.calls[0])
        self.objects = _object_leaves(capture)
        self.changed: set[Region] = set()
        self.copies = separate_copies(self.graph, self.calls)
        self._leave_objects_out()
        self._settle_homes()
        self._cross()
        self._pass_cache_on()
        self._generate()
        self._open_functions()

    def _of(self, call: CallRecord) -> Region:
        if call not in self.region:
            outer = None if call.outer is None else self._of(call.outer)
            self.region[call] = Region(call, outer)
            if outer is not None:
                outer.inner.append(self.region[call])
        return self.region[call]

    def _leave_objects_out(self) -> None:
        """What becomes of stateful objects is no result: whoever writes into them does so."""
        results = [n for n in self.graph.nodes if n.target is leave and n.args[1] == 0]
        self.graph.output_node().args = (tuple(results),)

    # -- homes ----------------------------------------------------------------------------------------------------

    def _settle_homes(self) -> None:
        """The region of every node; a node that a method made belongs where it stands."""
        here = self.root
        for call in self.calls.values():  # in the order in which they were made
            if call.done:
                self._of(call)
        for node in self.graph.nodes:
            if node.op in ("placeholder", "get_attr", "output"):
                self.home[node] = self.root
                continue
            if node.target in (enter, leave):
                region = self._of(self.calls[node.args[1]])  # type: ignore[index]
                side = region.enters if node.target is enter else region.leaves
                side[int(node.args[2])] = node  # type: ignore[arg-type]
                here = region if node.target is enter or region.outer is None else region.outer
            elif not is_new(node):
                here = self._of(node.meta["call"]) if "call" in node.meta else here
            self.home[node] = here
        for region in list(self.region.values()):  # what a call is handed is made before it
            for mark in region.enters.values():
                if region.outer is not None and isinstance(mark.args[0], fx.Node):
                    self._move_out(mark.args[0], region)

    def _move_out(self, node: fx.Node, region: Region) -> None:
        if not is_new(node) or region not in self.home[node].around() or region.outer is None:
            return
        self.home[node] = region.outer
        for operand in node.all_input_nodes:
            self._move_out(operand, region)

    def _dissolve(self, region: Region) -> None:
        assert region.outer is not None
        region.outer.dissolved |= {region.call, *region.dissolved}
        outer = region.outer.call
        outer.reads.update({key: v for key, v in region.call.reads.items()
                            if not (is_mode(*key) and outer.sets_mode_of(key[0], region.call.number))})  # fmt: skip
        region.outer.call.looked_into |= region.call.looked_into
        self.changed.discard(region)
        for node, home in self.home.items():
            if home is region:
                self.home[node] = region.outer
        for mark in (*region.enters.values(), *region.leaves.values()):
            mark.replace_all_uses_with(mark.args[0])  # type: ignore[arg-type]
            self.graph.erase_node(mark)
            del self.home[mark]
        at = region.outer.inner.index(region)
        for inner in region.inner:
            inner.outer = region.outer
        region.outer.inner[at : at + 1] = region.inner
        del self.region[region.call]

    # -- borders --------------------------------------------------------------------------------------------------

    def _cross(self) -> None:
        """Let every operand be what it is called where it is read, and note what crosses borders otherwise."""
        for region in self.region.values():
            region.taken, region.handed = [], []
        for node in list(self.graph.nodes):
            if node.op in ("placeholder", "get_attr") or node in self.root.enters.values() or is_size(node):
                continue  # a size can be read off whatever has it
            at = self._reads_in(node)
            for operand in node.all_input_nodes:
                seen = self._seen(operand, at)
                if seen is not operand:
                    node.replace_input_with(operand, seen)

    def _reads_in(self, node: fx.Node) -> Region:
        """Where a node's operands are read: marks stand on a border and read on its other side."""
        if node.target is leave:
            return self._of(self.calls[node.args[1]])  # type: ignore[index]
        home = self.home[node]
        return home.outer or home if node.target is enter else home

    def _seen(self, value: fx.Node, at: Region) -> fx.Node:
        """What a value is called in the own code of ``at``."""
        if value.op == "get_attr" or is_size(value) or mark_of(value).lifted:
            return value
        if value.op == "placeholder" and self.objects.get(value) is None:
            value = _mark_of(self.root.enters, value) or value
        target = list(at.around())
        here: Region | None = self.home[value]
        while here is not None and here not in target:
            if value.target is enter and self.home[value] is here:
                value = value.args[0]  # type: ignore[assignment]
            elif (mark := _mark_of(here.leaves, value)) is not None:
                value = mark
            elif value not in here.handed:
                here.handed.append(value)
            here = here.outer
        assert here is not None
        for region in target[: target.index(here)][::-1]:
            if (mark := _mark_of(region.enters, value)) is not None:
                value = mark
            elif not self._comes_with_object(value, region) and value not in region.taken:
                region.taken.append(value)
        return value

    def _comes_with_object(self, value: fx.Node, region: Region) -> bool:
        """Whether a value is a tensor in an object that the call is handed."""
        number = self.objects.get(value)
        inside = [self.capture.objects[n].inside for n in known_in(region.call.given)]
        given = {*known_in(region.call.given), *(at[0] for at in inside if at)}
        return number in given and not self.replaced_before(value, region)

    def replaced_before(self, value: fx.Node, region: Region) -> bool:
        """Whether the object that had a value when it was met holds another when a call begins."""
        number = self.objects[value]
        leaf = number, self.capture.objects[number].leaves.index(value)
        return any(leaf in call.replaced and region.call.is_after(call) for call in self.calls.values())

    @functools.cached_property
    def writers(self) -> dict[str, list[CallRecord]]:
        """The calls that set attributes of modules, by the dotted path of each."""
        found: dict[str, list[CallRecord]] = {}
        for call in self.calls.values():
            for write in call.writes:
                for path in write.owner[1] if write.owner[0] == "owned" else ():
                    found.setdefault(f"{path}.{write.name}" if path else write.name, []).append(call)
        return found

    def writers_at(self, place: Place) -> list[CallRecord]:
        """The calls that set, or add to, an attribute on the way to a place."""
        paths = {".".join(place.way[:end]) for end in range(1, len(place.way) + 1)}
        return [call for path, calls in self.writers.items() if path.partition("[")[0] in paths for call in calls]

    @property
    def cache(self) -> int | None:
        """The object that holds what is kept between tokens, by number."""
        fields = {o.number: o.first[2] if o.first[0] == "object" else () for o in self.capture.objects}
        return next((n for name in ("self_attention_cache", "layers") for n, f in fields.items() if name in f), None)

    def _pass_cache_on(self) -> None:
        """Mixers keep their state in the cache: calls that are not handed it get it from the call around them."""
        if self.cache is None:
            return
        made = self.capture.objects[self.cache].maker
        for node in self.graph.nodes:
            if not self.remembers(node):
                continue
            for region in self.home[node].around():
                own = {region.call, *region.dissolved}
                if self.cache in set(known_in(region.call.given)) or made in own or self.cache in region.held:
                    break
                region.held.append(self.cache)

    # -- what is generated ----------------------------------------------------------------------------------------

    def _generate(self) -> None:
        """Settle which regions run code of their own: those that were changed, and those that must pass values on."""
        waiting = [*self.changed, *(self.home[n] for n in self.graph.nodes if is_new(n))]
        # Which positions are padding is told to the whole model: what mixes them is run from there.
        self.mixing = {r for n in self.graph.nodes if self.mixes(n) for r in self.home[n].around()}
        waiting += [r.outer for r in self.region.values() if r.call in self.copies and r.outer is not None]
        by_path: dict[str, list[Region]] = {}
        for region in self.region.values():
            region.generated = region.passed_on = False
            region.nodes = []
            if region.path is not None:
                by_path.setdefault(region.path, []).append(region)
        while waiting or (waiting := self._reach_out()):
            region = waiting.pop()
            if region.generated:
                continue
            region.generated = True
            waiting += [inner for inner in region.inner if not inner.closed]
            repeated = len(by_path.get(region.path or "", ())) > 1
            marks = (*region.enters.values(), *region.leaves.values())
            wide = region in self.mixing or any(m.meta.get("wide") for m in marks)
            # A state of several channels stays with its stream: the call that holds all of it hands it on.
            region.passed_on = region.outer is not None and (repeated or wide or not region.closed)
            if region.passed_on and region.outer is not None:
                waiting.append(region.outer)
        # A function whose inside was changed is no call any more: its operators belong to the code around it.
        if opened := next((r for r in self.region.values() if r.path is None and r.generated), None):
            self.dissolve(opened)
            return
        for node in self.graph.nodes:
            if self.home[node].generated and node.op not in ("placeholder", "get_attr", "output"):
                self.home[node].nodes.append(node)

    def _reach_out(self) -> list[Region]:
        """Let the code around choose that of calls that depend on things outside of their module: only there is it
        told when these change. So too where it may go around the call, to those within that must be told what to run.
        Returns what has to run code of its own for that."""
        alone = [r for r in self.region.values() if r.generated and not r.passed_on and r.outer]
        around = lambda r: r.path is not None and self.listed(r.path) and any(True for _ in r.told())
        out = [r for r in alone if r.depends_outside() or around(r)]
        for region in out:
            region.passed_on = True
        return [region.outer for region in out if region.outer is not None]

    def _open_functions(self) -> None:
        """Keep a function whole only where its result is handed on.

        It may give something else at run time (no mask where the trace had one), and generated code that computes with
        its result was traced with what the trace had.
        """
        for region in list(self.region.values()):
            mine = region.outer is not None and region.outer.generated
            whole = all(only_handed_on(self, mark) for mark in region.leaves.values())
            if region.path is None and mine and not whole and not isinstance(region.call.target, MethodOf):
                self.dissolve(region)

    def dissolve(self, region: Region) -> None:
        """Take a call's operators into the code around it, where the call itself cannot be made."""
        assert region.outer is not None
        if region.call.alters:
            found = f"what {region.name} leaves in an object would not get into it"
            raise VariantError(f"cannot write the code of {region.outer.name}", found, "exclude= the modules around it")
        self.changed.add(region.outer)
        self._dissolve(region)
        self._cross()
        self._pass_cache_on()
        self._generate()

    def open_root(self) -> None:
        """Have the whole call run code of its own."""
        self.changed.add(self.root)
        self._generate()
        self._open_functions()

    def items(self, region: Region) -> list[fx.Node | Region]:
        """Operators and calls of a generated region, in the order of the graph."""
        position = {n: i for i, n in enumerate(self.graph.nodes)}
        found: list[tuple[int, fx.Node | Region]] = [
            (position[n], n) for n in region.nodes if n.target not in (enter, leave, keep) and not is_size(n)
        ]
        for inner in region.inner:
            at = [position[n] for n in inner.enters.values()]
            if not at:
                at = [position[n] for n, home in self.home.items() if inner in home.around() and n in position]
                at = [min(at, default=-1)]
            found.append((max(at), inner))
        return [item for _, item in sorted(found, key=lambda pair: pair[0])]

    def acts_in(self, region: Region) -> bool:
        """Whether a method made any of a generated call's code: the rest of it hands values on."""
        return any(is_new(n) and not mark_of(n).carries for r in region.below() for n in r.nodes)


def is_new(node: fx.Node) -> bool:
    """Whether a method made the node."""
    return bool(mark_of(node).method)


def is_size(node: fx.Node) -> bool:
    """Whether a node is a number computed from sizes. A truth that a trace leaves open is one of values."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat))


def known_in(template: Template) -> Iterator[int]:
    """Numbers of the objects that a template refers to."""
    return (part[1] for part in innermost(template) if part[0] == "known")


def _mark_of(marks: dict[int, fx.Node], value: fx.Node) -> fx.Node | None:
    return next((m for m in marks.values() if m.args[0] is value), None)


def _object_leaves(capture: Capture) -> dict[fx.Node, int]:
    for held in capture.objects:
        held.leaves = [now(leaf) if isinstance(leaf, fx.Node) else leaf for leaf in held.leaves]
    return {leaf: o.number for o in capture.objects if o.inside is None
            for leaf in o.leaves if isinstance(leaf, fx.Node)}  # fmt: skip


def only_handed_on(plan: Plan, mark: fx.Node) -> bool:
    """Whether nothing but calls of the user's own modules and functions reads what a mark carries."""
    for user in mark.users:
        if user.target not in (enter, leave):
            return False
        region = plan.home[user]
        if user.target is enter and region.generated and not only_handed_on(plan, user):
            return False
    return True


def from_function(plan: Plan, mark: fx.Node) -> bool:
    """Whether what a call is handed comes from a function that is kept whole: it may be something else at run time."""
    node: fx.Node | object = mark
    while isinstance(node, fx.Node) and node.target in (enter, leave):
        if node.target is leave and not isinstance(plan.calls[node.args[1]].target, str):  # type: ignore[index]
            return True
        node = node.args[0]
    return False
