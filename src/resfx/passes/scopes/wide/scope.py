"""Graph surgery for methods of scope ``wide``: between entry and exit the stream has ``n`` channels.

Where a stream enters, the state is expanded. At each add the branch reads a collapsed state and the add becomes a
write. What the host does to the state between two adds (the norm of a post-norm model, a scaled shortcut) is done
to every channel. Any other reader of the state (hidden states handed out, cross-attention, auxiliary heads) and
whatever follows the last add get a collapsed state.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from resfx.methods.sequence.mixer import Mixer
from resfx.passes.capture.normalize import resolves
from resfx.passes.find.graph import place_module

from .channels import carry
from .plan import Step, TokenAxis


def widen(
    graph: fx.Graph, run: Sequence[Step], paths: Sequence[str], tree: nn.Module, method: str, tokens: TokenAxis
) -> None:
    """Make one run of adds a wide stream.

    Args:
        paths: per step, where its modules live in ``tree``: ``.read`` and ``.write``, ``.expand`` at the first and
            ``.collapse`` at the last. A step without a read module shares the one before.
        method: the method's name, recorded on every new node.
    """
    Widening(graph, run, paths, tree, method, tokens).run()


class Widening:
    """The surgery on one run. ``wide`` is the node that carries the state, ``cursor`` the last node made."""

    def __init__(
        self, graph: fx.Graph, run: Sequence[Step], paths: Sequence[str], tree: nn.Module, method: str,
        tokens: TokenAxis,
    ) -> None:  # fmt: skip
        self.graph, self.steps, self.paths, self.tree, self.method = graph, run, paths, tree, method
        self.tokens = tokens
        self.channels = int(tree.get_submodule(f"{paths[0]}.expand").channels)  # type: ignore[arg-type]
        self.modules = {n for n, _ in tree.named_modules()}
        self.read_path = ""
        self.x: fx.Node
        self.memo: fx.Node

    def run(self) -> None:
        """Expand, read and write at each add, collapse; then drop what the host's adds leave behind."""
        states: list[fx.Node] = []
        wide: fx.Node | None = None
        for step, path in zip(self.steps, self.paths, strict=True):
            at_entry = wide
            if not step.parallel:
                at_entry = self._read(step, path, wide)
            assert at_entry is not None
            wide = self._write(step, path, at_entry)
            states.append(wide)
        for step, path, state in list(zip(self.steps, self.paths, states, strict=True))[::-1]:
            self._retire(step, path, state)

    def _new(self, after: fx.Node, like: fx.Node, make: Callable[[], fx.Node], narrow: bool = False) -> fx.Node:
        with self.graph.inserting_after(after):
            mark = self.graph.call_function(_mark)
        with self.graph.inserting_before(mark):
            last = make()
        node = after.next
        while node is not mark:
            dropped = {"from_node"} if node is last and narrow else {"from_node", "val"}
            node.meta = {**{k: v for k, v in like.meta.items() if k not in dropped}, "resfx": self.method}
            node = node.next
        self.graph.erase_node(mark)
        return last

    def _call(self, after: fx.Node, like: fx.Node, path: str, *args: fx.Node | None, narrow: bool = False) -> fx.Node:
        return self._new(after, like, lambda: self.graph.call_module(path, args), narrow)

    def _read(self, step: Step, path: str, wide: fx.Node | None) -> fx.Node:
        """The state at the branch's entry; the branch then reads the collapsed ``self.x``."""
        entry, graph = step.entry, self.graph
        first, at_add = wide is None, wide is not None and not step.before
        known = {*step.readers, *step.after, step.site.node, *step.site.joins}
        others = [u for u in entry.users if u not in known]
        if wide is None:
            wide = self._expand(entry)
        elif step.before:
            here, nodes = wide, step.before
            wide = self._new(entry, entry, lambda: carry(graph, here, self._source(step), nodes, self.channels))
        if f"{path}.read" in self.modules:
            self.read_path = f"{path}.read"
        both = self._call(wide, entry, self.read_path, wide)
        self.x = self._new(both, entry, lambda: graph.call_function(operator.getitem, (both, 0)), narrow=True)
        self.memo = self._new(self.x, step.site.node, lambda: graph.call_function(operator.getitem, (both, 1)))
        mixed = self._over_tokens(self.x, entry, self.read_path, f"{path}.read_tokens", after=self.memo)
        for node in (both, self.x, self.memo, mixed):  # the module that reads is theirs, not the one that added last
            node.meta["nn_module_stack"] = step.readers[0].meta.get("nn_module_stack")
        self.x = mixed
        for user in step.readers:
            user.replace_input_with(entry, self.x)
        if others and not first and not at_add:
            narrow = self._collapse(wide, entry, f"{path}.entry_tokens")
            for user in others:
                user.replace_input_with(entry, narrow)
        return wide

    def _write(self, step: Step, path: str, wide: fx.Node) -> fx.Node:
        add = step.site.node
        if step.after:
            source = step.after[0].all_input_nodes
            origin = next(n for n in source if n is step.entry or n in self._adds())
            here = wide
            wide = self._new(add, add, lambda: carry(self.graph, here, origin, step.after, self.channels))
        context = self.x if step.context is step.entry else step.context
        after = wide if step.after else add
        return self._call(after, add, f"{path}.write", wide, step.branch, self.x, context, self.memo)

    def _expand(self, entry: fx.Node) -> fx.Node:
        path = f"{self.paths[0]}.expand"
        module = self.tree.get_submodule(path)
        if not isinstance(module, Mixer):
            return self._call(entry, entry, path, entry)
        if "streams" not in vars(module):
            module.streams = module.streams if self.tokens.streaming else 0
        return self._call_mixer(entry, entry, path)

    def _collapse(self, state: fx.Node, like: fx.Node, tokens: str) -> fx.Node:
        path = f"{self.paths[-1]}.collapse"
        narrow = self._call(state, like, path, state, narrow=True)
        return self._over_tokens(narrow, like, path, tokens)

    def _over_tokens(self, x: fx.Node, like: fx.Node, source: str, path: str, after: fx.Node | None = None) -> fx.Node:
        """Behind a module that reads earlier tokens: what it found for later ones is added there, one mixer for each
        of its calls, since each has a past of its own."""
        make = getattr(self.tree.get_submodule(source), "over_tokens", None)
        mixer = make() if make is not None else None
        if mixer is None:
            return x
        if not resolves(self.tree, path):
            mixer.streams = mixer.streams if self.tokens.streaming else 0
            place_module(self.tree, path, mixer)
        return self._call_mixer(after or x, like, path, x)

    def _call_mixer(self, after: fx.Node, like: fx.Node, path: str, x: fx.Node | None = None) -> fx.Node:
        def make() -> fx.Node:
            mask, kwargs = self.tokens.mask, dict[str, Any]()
            if mask is not None:
                kwargs["mask"] = self.graph.call_function(operator.eq, (mask, 0)) if self.tokens.drops else mask
            return self.graph.call_module(path, (x or after,), kwargs)

        node = self._new(after, like, make, narrow=x is not None)
        node.meta["longer_keys"] = self.tokens.longer_keys
        return node

    def _retire(self, step: Step, path: str, state: fx.Node) -> None:
        """Drop an add that was replaced; whoever still reads it gets the collapsed state."""
        add = step.site.node
        if add.users:
            step.site.result = self._collapse(state, add, f"{path}.exit_tokens")
            add.replace_all_uses_with(step.site.result)
        for node in [add, *step.site.joins, *reversed(step.after), *reversed(step.before)]:
            if not node.users:
                self.graph.erase_node(node)

    def _source(self, step: Step) -> fx.Node:
        return self.steps[[s is step for s in self.steps].index(True) - 1].site.node

    def _adds(self) -> set[fx.Node]:
        return {s.site.node for s in self.steps}


def _mark() -> None:
    """Target of a node that never runs."""
