"""Graph surgery for methods of scope ``wide``: between entry and exit the stream has ``n`` channels.

Where a stream enters, the state is expanded. At each add the branch reads a collapsed state and the add becomes a
write. What the host does to the state between two adds (the norm of a post-norm model, a scaled shortcut) is done
to every channel. Any other reader of the state (hidden states handed out, cross-attention, auxiliary heads) and
whatever follows the last add get a collapsed state.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from ..ops._streaming import Mixer
from ..report import Site, Skip, Stream
from .channels import carry, is_carriable
from .graph import place_module
from .index import Index
from .normalize import resolves
from .sequence_scope import attention_of

ALPHA = "an add with a factor rounds once: its terms cannot be told apart"
CHANNEL_AXIS = "the features are not on the last axis"
OWN_BASIS = "the shortcut changes the state's basis: a wide stream can only begin after it"
PARTNER = "its branch starts before the add ahead of it, which is not part of the wide stream"
REMEDIES = {
    ALPHA: "write x + alpha * f in two steps",
    CHANNEL_AXIS: "use a method of scope 'site'",
    OWN_BASIS: "",
    PARTNER: "include that add too",
}


@dataclass
class Step:
    """One add of a wide run, as the graph has it now.

    Attributes:
        entry: the node that the branch starts from; it will read the collapsed state.
        readers: users of ``entry`` that lead to the branch's output.
        before: nodes from the add before to ``entry``, in order.
        after: nodes from ``entry`` to the shortcut operand, in order.
        context: the branch's normalised context; ``entry`` itself where the state is one, as on post-norm hosts.
        parallel: the branch starts from the same entry as the one before.
    """

    site: Site
    branch: fx.Node
    entry: fx.Node
    readers: list[fx.Node] = field(default_factory=list)
    before: list[fx.Node] = field(default_factory=list)
    after: list[fx.Node] = field(default_factory=list)
    context: fx.Node | None = None
    parallel: bool = False


@dataclass(frozen=True)
class TokenAxis:
    """What a convolution over tokens must know of the host.

    Attributes:
        streaming: tokens may come in several calls with a cache: not where the attention reads later ones.
        mask: the call's padding mask, true at real tokens, or where ``drops`` at the others.
        longer_keys: there is a cache.
    """

    streaming: bool = True
    mask: fx.Node | None = None
    drops: bool = False
    longer_keys: bool = False


def token_axis(graph: fx.Graph, tree: nn.Module, stream: Stream) -> TokenAxis:
    """The token axis of a stream, as its first self-attention treats it."""
    found = attention_of(stream, Index(graph, tree))
    if found is None:
        return TokenAxis()
    return TokenAxis(found.causal, found.padding, found.padding_drops, found.longer_keys)


def refusal(site: Site) -> str | None:
    """Why an add cannot be part of any wide stream; ``None`` where it can."""
    if site.axis != -1:
        return CHANNEL_AXIS
    if site.form in ("projection", "resampled"):
        return OWN_BASIS
    return ALPHA if site.alpha != 1 else None


def wide_runs(graph: fx.Graph, tree: nn.Module, sites: Sequence[Site], skips: list[Skip]) -> list[list[Step]]:
    """Maximal chains of adds that hand one state from one to the next, in order. An add left out ends a run.

    Args:
        sites: the claimed adds of one stream; those that cannot be widened are added to ``skips``.
    """
    index = Index(graph, tree)
    runs: list[list[Step]] = []
    for site in sites:
        reason = refusal(site)
        last = runs[-1][-1] if runs else None
        step = _step(site, last, index) if reason is None else None
        if step is None:
            reason = reason or PARTNER
            skips.append(Skip(site.owner, site.line, reason, REMEDIES[reason], node=site.node))
            continue
        if step.before or step.parallel or (last is not None and step.entry is last.site.node):
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs


def _step(site: Site, last: Step | None, index: Index) -> Step | None:
    args = [*site.node.args, *site.node.kwargs.values()]
    shortcut, branch = args[site.shortcut_index], args[1 - site.shortcut_index]
    assert isinstance(shortcut, fx.Node) and isinstance(branch, fx.Node)
    trail = _trail(shortcut, index, last.site.node if last is not None else None)
    if site.form == "parallel":
        if last is None or trail[0] is not last.site.node:
            return None
        above = _above(branch, index.position[last.entry], index)
        last.readers += [u for u in last.entry.users if u in above and u not in last.readers]
        context = _context(site, last.entry, index)
        return Step(site, branch, last.entry, after=trail[1:], context=context, parallel=True)
    above = _above(branch, index.position[trail[0]], index)
    start = 0
    while start + 1 < len(trail) and all(u is trail[start + 1] or u not in above for u in trail[start].users):
        start += 1
    entry = trail[start]
    readers = [u for u in entry.users if u in above]
    before = _between(last.site.node, entry, index) if last is not None else None
    context = _context(site, entry, index)
    return Step(site, branch, entry, readers, before or [], trail[start + 1 :], context)


def _context(site: Site, entry: fx.Node, index: Index) -> fx.Node | None:
    if site.context is None or site.context not in index.position:
        return None
    return entry if index.position[site.context] <= index.position[entry] else site.context


def _trail(node: fx.Node, index: Index, stop: fx.Node | None) -> list[fx.Node]:
    """From the fork to a shortcut operand, through operators that rearrange, cast or scale."""
    trail = [node]
    while node is not stop and index.role[node] in ("pass", "scale"):
        varying = [x for x in index.data[node] if not index.constant[x]]
        if len(varying) != 1:
            break
        node = varying[0]
        trail.append(node)
    return trail[::-1]


def _above(node: fx.Node, since: int, index: Index) -> set[fx.Node]:
    """``node`` and everything it is computed from, no further back than position ``since``."""
    seen, stack = {node}, [node]
    while stack:
        for x in stack.pop().all_input_nodes:
            if x not in seen and index.position[x] > since:
                seen.add(x)
                stack.append(x)
    return seen


def _between(start: fx.Node, end: fx.Node, index: Index) -> list[fx.Node] | None:
    """The nodes that turn the state after one add into the next entry; ``None`` if that is not all they do."""
    if end is start or index.position[end] <= index.position[start]:
        return None
    above = _above(end, index.position[start], index)
    depends, nodes = {start}, []
    for node in sorted(above, key=index.position.__getitem__):
        if depends & set(node.all_input_nodes):
            depends.add(node)
            nodes.append(node)
    return nodes if end in depends and all(is_carriable(n, index) for n in nodes) else None


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
        others = [u for u in entry.users if u not in step.readers and u not in step.after and u is not step.site.node]
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
        self.x = self._over_tokens(self.x, entry, self.read_path, f"{path}.read_tokens", after=self.memo)
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
            mask, kwargs = self.tokens.mask, {}
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
        for node in [add, *reversed(step.after), *reversed(step.before)]:
            if not node.users:
                self.graph.erase_node(node)

    def _source(self, step: Step) -> fx.Node:
        return self.steps[[s is step for s in self.steps].index(True) - 1].site.node

    def _adds(self) -> set[fx.Node]:
        return {s.site.node for s in self.steps}


def _mark() -> None:
    """Target of a node that never runs."""
