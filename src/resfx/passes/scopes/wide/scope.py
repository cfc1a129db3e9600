"""Graph surgery for methods of scope ``wide``: between entry and exit the stream has ``n`` channels.

Where a stream enters, the state is expanded. At each add the branch reads a collapsed state and the add becomes a
write. What the host does to the state between two adds (the norm of a post-norm model, a scaled shortcut) is done
to every channel. Any other reader of the state (hidden states handed out, cross-attention, auxiliary heads) and
whatever follows the last add get a collapsed state.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import fx, nn

from resfx.errors import NoSitesError, VariantError
from resfx.methods.sequence.mixer import Mixer
from resfx.methods.wide.base import WideStream
from resfx.passes.capture.marking.record import enter, leave
from resfx.passes.find.site import Site, Skip
from resfx.passes.scopes.insert import dress, inserting_behind, take_over
from resfx.passes.scopes.places import place_at
from resfx.passes.scopes.rows import from_rows, to_rows, value_in_rows
from resfx.passes.scopes.surgery import Turn, reasons_of, remedies_of

from .channels import carry, widened
from .plan import Add, TokenAxis, token_axis, wide_runs


def apply_wide(turn: Turn) -> Sequence[Site]:
    """Scope ``wide``: every run of consecutive adds becomes a stream of several channels."""
    surgery, wanted = turn.surgery, set(turn.chosen)
    graph, tree, skips = surgery.graph, surgery.tree, list[Skip]()
    runs: list[tuple[list[Add], TokenAxis]] = []
    for stream in surgery.streams:
        # A mixer over positions that was put between two adds is one more branch of the stream.
        members = [s for s in stream.sites if s in wanted or s.form == "mixer"]
        if wanted & set(members):
            tokens = token_axis(graph, tree, stream)
            runs += [(run, tokens) for run in wide_runs(graph, tree, members, skips) if wanted & {a.site for a in run}]
    if turn.first:
        turn.application.skips += skips
    if not runs:
        raise NoSitesError(f"no residual add to rewrite with {turn.label}", reasons_of(skips), remedies_of(skips))
    for run, tokens in runs:
        if turn.first:
            _build(turn, run)
        _require(turn, run)
        results = Widening(turn, run, tokens).run()
        for add, result in zip(run, results, strict=True):
            turn.change(add.site, "replaced", "read", result=result)
    return [add.site for run, _ in runs for add in run if add.site in wanted]


def _build(turn: Turn, run: Sequence[Add]) -> None:
    """Build the modules of one stream: ``read`` and ``write`` at its adds, ``expand`` at the first, ``collapse`` at the
    last. An add without a ``read`` shares the one before."""
    tree = turn.surgery.tree
    reads = itertools.accumulate((not a.parallel for a in run), initial=-1)
    places = [
        dataclasses.replace(place_at(a.site, tree), depth=depth, parallel=a.parallel)
        for a, depth in zip(run, list(reads)[1:], strict=True)
    ]
    stream: WideStream = turn.application.method.build_stream(places)
    turn.module(run[0].site, "expand", lambda: stream.expand)
    for add, read, write in zip(run, stream.reads, stream.writes, strict=True):
        turn.module(add.site, "read", lambda read=read: read)  # type: ignore[misc]
        turn.module(add.site, "write", lambda write=write: write)  # type: ignore[misc]
    turn.module(run[-1].site, "collapse", lambda: stream.collapse)


def _require(turn: Turn, run: Sequence[Add]) -> None:
    """Refuse a capture in which a stream begins or ends elsewhere than where its modules stand."""
    needed = [(run[0].site, "expand"), *((a.site, "write") for a in run), (run[-1].site, "collapse")]
    if missing := [f"{site.name}: no {role}" for site, role in needed if not turn.path(site, role)]:
        raise VariantError(
            f"the stream that {turn.label} widened is cut elsewhere in this capture", missing[0],
            "name a mixer over positions before it, in one call: mode=[mixer, method]; else call as it was captured",
        )  # fmt: skip


class Widening:
    """The surgery on one run; ``x``, with its features last, and ``memo`` are what the last read gave."""

    def __init__(self, turn: Turn, run: Sequence[Add], tokens: TokenAxis) -> None:
        self.turn, self.adds, self.tokens = turn, run, tokens
        self.graph, self.tree = turn.surgery.graph, turn.surgery.tree
        self.axis = run[0].site.axis
        self.channels = int(cast(Any, self._module(run[0].site, "expand")).channels)
        self.reads = run[0].site  # the site whose read module reads
        self.x: fx.Node
        self.memo: fx.Node

    def run(self) -> list[fx.Node | None]:
        """Expand, read and write at each add, collapse; then drop what the host's adds leave behind.

        Returns:
            for each add the node that carries the stream as one tensor behind it, where something still reads it.
        """
        states: list[fx.Node] = []
        wide: fx.Node | None = None
        for add in self.adds:
            at_entry = wide
            if not add.parallel:
                at_entry = self._read(add, wide)
            assert at_entry is not None
            wide = self._write(add, at_entry)
            states.append(wide)
        retired = [self._retire(add, state) for add, state in list(zip(self.adds, states, strict=True))[::-1]]
        return retired[::-1]

    def _module(self, site: Site, role: str) -> nn.Module:
        return self.tree.get_submodule(self.turn.path(site, role))

    def _new(
        self, after: fx.Node, like: fx.Node, make: Callable[[], fx.Node], role: str = "", narrow: bool = False,
        **notes: bool,
    ) -> fx.Node:  # fmt: skip
        """What ``make`` makes goes behind ``after``; its last node is as ``like``, in rows if ``narrow``, else wide."""
        with inserting_behind(self.graph, after) as made:
            last = make()
        mark = self.turn.mark(role, **notes)
        for node in made:
            if node.meta.pop("carried", False):  # what is carried is the host's own
                continue
            dress(node, like, mark, "val")
        value = like.meta.get("val")
        if "val" not in last.meta:
            last.meta["val"] = value_in_rows(value, self.axis) if narrow else widened(value, self.channels, self.axis)
        return last

    def _rows(self, node: fx.Node, after: fx.Node) -> fx.Node:
        """A tensor of the host with its features last."""
        return node if self.axis == -1 else self._new(after, node, lambda: to_rows(self.graph, node, self.axis))

    def _back(self, rows: fx.Node, like: fx.Node) -> fx.Node:
        """Rows as the host lays them out."""
        if self.axis == -1:
            return rows
        return self._new(rows, like, lambda: from_rows(self.graph, rows, self.axis, like))

    def _call(
        self, after: fx.Node, like: fx.Node, site: Site, role: str, *args: fx.Node | None, narrow: bool = False
    ) -> fx.Node:
        path = self.turn.path(site, role)
        return self._new(after, like, lambda: self.graph.call_module(path, args), role, narrow)

    def _read(self, step: Add, wide: fx.Node | None) -> fx.Node:
        """The state at the branch's entry; the branch then reads the collapsed ``self.x``."""
        entry, graph = step.entry, self.graph
        first, at_add = wide is None, wide is not None and not step.before
        known = {*step.readers, *step.after, step.site.node, *step.site.joins}
        others = [u for u in entry.users if u not in known]
        if wide is None:
            wide = self._expand(entry)
        elif step.before:
            wide = self._carry_to_entry(step, wide)
        if self.turn.path(step.site, "read"):
            self.reads = step.site
        both = self._call(wide, entry, self.reads, "read", wide)
        self.x = self._new(both, entry, lambda: graph.call_function(operator.getitem, (both, 0)), narrow=True)
        self.memo = self._new(self.x, step.site.node, lambda: graph.call_function(operator.getitem, (both, 1)))
        source = self._module(self.reads, "read")
        self.x = self._over_tokens(self.x, entry, source, step.site, "read_tokens", after=self.memo)
        inner = self._back(self.x, entry)
        node, end = both, max(self.memo, inner)
        while node <= end:  # the module that reads is theirs, not the one that added last
            node.meta["nn_module_stack"] = step.readers[0].meta.get("nn_module_stack")
            node = node.next
        for user in step.readers:
            user.replace_input_with(entry, inner)
        if others and not first and not at_add:
            narrow = self._collapse(wide, entry, step.site, "entry_tokens")
            for user in others:
                user.replace_input_with(entry, narrow)
        return wide

    def _write(self, step: Add, wide: fx.Node) -> fx.Node:
        add = step.site.node
        if step.after:
            source = step.after[0].all_input_nodes
            origin = next(n for n in source if n is step.entry or n in self._nodes())
            wide = self._carry(add, wide, origin, step.after)
        branch = self._rows(step.branch, wide if step.after else add)
        after = max(branch, wide if step.after else add)
        context: fx.Node | None = self.x
        if step.context is not step.entry:
            context = step.context and self._rows(step.context, after)
            after = max(after, context or after)
        return self._call(after, add, step.site, "write", wide, branch, self.x, context, self.memo)

    def _carry_to_entry(self, step: Add, wide: fx.Node) -> fx.Node:
        """What is between two adds, done to every channel. A call on whose border the state is read elsewhere too, as
        hidden states that are handed out are, gives its state once: whoever reads it there gets that one collapsed."""
        source, nodes = self._source(step), list(step.before)
        while len(nodes) > 1 and nodes[0].target in (enter, leave):
            mark = nodes.pop(0)
            wide = self._carry(mark, wide, source, [mark])
            if others := [u for u in mark.users if u is not nodes[0]]:
                narrow = self._collapse(wide, mark, step.site, "border_tokens")
                for user in others:
                    user.replace_input_with(mark, narrow)
            source = mark
        return self._carry(step.entry, wide, source, nodes)

    def _carry(self, after: fx.Node, wide: fx.Node, source: fx.Node, nodes: Sequence[fx.Node]) -> fx.Node:
        """What the host does to its state between ``source`` and ``after``, done to every channel."""
        make = lambda: carry(self.graph, wide, source, nodes, self.channels, self.axis)
        return self._new(after, after, make, carries=True)

    def _expand(self, entry: fx.Node) -> fx.Node:
        site = self.adds[0].site
        module, rows = self._module(site, "expand"), self._rows(entry, entry)
        if not isinstance(module, Mixer):
            return self._call(rows, entry, site, "expand", rows)
        if "streams" not in vars(module):
            module.streams = module.streams if self.tokens.streaming else 0
        return self._call_mixer(rows, entry, site, "expand")

    def _collapse(self, state: fx.Node, like: fx.Node, site: Site, tokens: str) -> fx.Node:
        last = self.adds[-1].site
        narrow = self._call(state, like, last, "collapse", state, narrow=True)
        return self._back(self._over_tokens(narrow, like, self._module(last, "collapse"), site, tokens), like)

    def _over_tokens(
        self, x: fx.Node, like: fx.Node, source: nn.Module, site: Site, role: str, after: fx.Node | None = None
    ) -> fx.Node:
        """Behind a module that reads earlier tokens: what it found for later ones is added there, one mixer for each
        of its calls, since each has a past of its own."""

        def make() -> nn.Module | None:
            mixer = cast(Any, source).over_tokens() if hasattr(source, "over_tokens") else None
            if mixer is not None and not self.tokens.streaming:
                mixer.streams = 0
            return mixer

        path = self.turn.module(site, role, make, late=True)
        return self._call_mixer(after or x, like, site, role, x) if path else x

    def _call_mixer(self, after: fx.Node, like: fx.Node, site: Site, role: str, x: fx.Node | None = None) -> fx.Node:
        path = self.turn.path(site, role)

        def make() -> fx.Node:
            mask, kwargs = self.tokens.mask, dict[str, Any]()
            if mask is not None:
                kwargs["mask"] = self.graph.call_function(operator.eq, (mask, 0)) if self.tokens.drops else mask
            return self.graph.call_module(path, (x or after,), kwargs)

        return self._new(after, like, make, role, narrow=x is not None, longer_keys=self.tokens.longer_keys)

    def _retire(self, step: Add, state: fx.Node) -> fx.Node | None:
        """Drop an add that was replaced; whoever still reads it gets the collapsed state."""
        add, result = step.site.node, None
        if add.users:
            result = self._collapse(state, add, step.site, "exit_tokens")
            take_over(add, result)
        for node in [add, *step.site.joins, *reversed(step.after), *reversed(step.before)]:
            if not node.users:
                self.graph.erase_node(node)
        return result

    def _source(self, step: Add) -> fx.Node:
        return self.adds[[a is step for a in self.adds].index(True) - 1].site.node

    def _nodes(self) -> set[fx.Node]:
        return {a.site.node for a in self.adds}
