"""Which adds make a wide stream, and how the graph has to be cut: read before it is changed.

A run is a chain of adds that hand one state from one to the next. For each of its adds an :class:`Add` says where
the branch starts, who reads the state there, and what the host does to the state on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from resfx.passes.find.index import Index
from resfx.passes.find.site import Site, Skip, Stream
from resfx.passes.scopes.sequence.scope import attention_of

from .channels import is_carriable

ALPHA = "an add with a factor or a product in it rounds once: its terms cannot be told apart"
OWN_BASIS = "the shortcut changes the state's basis: a wide stream can only begin after it"
PARTNER = "its branch starts before the add ahead of it, which is not part of the wide stream"
REMEDIES = {
    ALPHA: "write x + alpha * f in two steps",
    OWN_BASIS: "",
    PARTNER: "include that add too",
}


@dataclass
class Add:
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
    if site.form in ("projection", "resampled"):
        return OWN_BASIS
    return None if site.is_plain else ALPHA


def wide_runs(graph: fx.Graph, tree: nn.Module, sites: Sequence[Site], skips: list[Skip]) -> list[list[Add]]:
    """Maximal chains of adds that hand one state from one to the next, in order. An add left out ends a run.

    Args:
        sites: the claimed adds of one stream; those that cannot be widened are added to ``skips``.
    """
    index = Index(graph, tree)
    runs: list[list[Add]] = []
    for site in sites:
        reason = refusal(site)
        last = runs[-1][-1] if runs else None
        add = _add(site, last, index) if reason is None else None
        if add is None:
            reason = reason or PARTNER
            skips.append(Skip(site.owner, site.line, reason, REMEDIES[reason], node=site.node))
            continue
        goes_on = last is not None and (bool(add.before) or add.entry is last.site.node) and site.axis == last.site.axis
        if goes_on or add.parallel:
            runs[-1].append(add)
        else:
            runs.append([add])
    return runs


def _add(site: Site, last: Add | None, index: Index) -> Add | None:
    shortcut, branch = (term.value for term in site.terms)
    trail = _trail(shortcut, index, last.site.node if last is not None else None)
    if site.form == "parallel":
        if last is None or trail[0] is not last.site.node:
            return None
        above = _above(branch, index.position[last.entry], index)
        last.readers += [u for u in last.entry.users if u in above and u not in last.readers]
        context = _context(site, last.entry, index)
        return Add(site, branch, last.entry, after=trail[1:], context=context, parallel=True)
    above = {x for x in _above(branch, index.position[trail[0]], index) if index.is_tensor(x)}  # a size is no state
    start = 0
    while start + 1 < len(trail) and all(u is trail[start + 1] or u not in above for u in trail[start].users):
        start += 1
    entry = trail[start]
    readers = [u for u in entry.users if u in above]
    before = _between(last.site.node, entry, index) if last is not None else None
    context = _context(site, entry, index)
    return Add(site, branch, entry, readers, before or [], trail[start + 1 :], context)


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
