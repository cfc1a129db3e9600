"""``x + f(x)`` as it is usually written, with the shortcut as it is or scaled: ``a x + f(x)``, ``(x + b) a + f(x)``."""

from __future__ import annotations

from torch import fx

from resfx.passes.find import operators as ops
from resfx.passes.find.draft import Draft
from resfx.passes.find.index import Index
from resfx.passes.find.reasons import ELEMENTWISE, FOREIGN, MERGED, NO_PATH, QUANTISED, QUERY, REINJECTED
from resfx.passes.find.terms import Reading
from resfx.passes.find.walk import Span, Walk


def plain_form(walk: Walk, add: Reading, scaled: bool) -> Draft | str | None:
    """The site of an add, or why it is none; ``None`` where there is nothing to look at.

    Args:
        scaled: look behind the factor of the shortcut.
    """
    index, branch = walk.index, add.branch.value
    state = index.read(add.shortcut.parts[0].holder, add.shortcut.value)
    fork = index.strip(state)
    if scaled:
        fork, was_scaled = index.strip_scaled(state)
        if not was_scaled:
            return None
    found = walk.between(fork, branch)
    if found.reached and (found.weighted or add.mixes):
        if not scaled and _merged(walk, fork, branch):
            return MERGED
        if _other_slice(index, state, fork, found):
            return None
        if _goes_on_elsewhere(walk, add):
            return REINJECTED
        if found.chosen and add.branch.weight < 0:
            return QUANTISED
        if _is_query(walk, add, found):
            return QUERY
        return walk.draft(add, fork, "scaled" if scaled else "identity", found)
    return ELEMENTWISE if found.reached else FOREIGN if found.foreign else NO_PATH


def _goes_on_elsewhere(walk: Walk, add: Reading) -> bool:
    """Whether the branch is a state whose stream goes on without this add, which another state joins for one branch
    only: a later sum takes the state up as it is, or it is the result and the sum is not."""
    index, state = walk.index, walk.index.strip(add.branch.value)
    if walk.stream_at(state) is None:
        return False
    readers = [r for r in index.onward(state) if r is not add.node]
    after = index.position[add.node]
    if any(index.name[r] == "add" and any(index.position[x] > after for x in index.data[r]) for r in readers):
        return True
    ends = index.onward(add.node)
    return any(r.op == "output" for r in readers) and not any(r.op == "output" or index.name[r] == "add" for r in ends)


def _is_query(walk: Walk, add: Reading, found: Span) -> bool:
    """Whether heads of an attention are added to their own queries (residual pooling): nothing but scores lies between,
    and all that reads the sum is a projection."""
    index, readers = walk.index, walk.index.onward(add.node)
    heads = (index.rank(add.node) or 0) > 3 and not any(index.is_weighted(n) for n in found.nodes)
    return heads and bool(readers) and all(index.role[r] == "weight" for r in readers)


def _other_slice(index: Index, shortcut: fx.Node, fork: fx.Node, found: Span) -> bool:
    """Whether the shortcut is a slice of the fork, and the branch only reads other slices."""
    node = shortcut
    cuts: set[tuple[object, ...]] = set()
    while node is not fork and index.data[node]:
        if index.name[node] in ops.SLICES:
            cuts.add(node.args[1:])
        node = index.data[node][0]
    if not cuts:
        return False
    entries = [n for n in found.nodes if fork in index.data[n]]
    return all(index.name[n] in ops.SLICES and n.args[1:] not in cuts for n in entries)


def _merged(walk: Walk, fork: fx.Node, branch: fx.Node) -> bool:
    """Whether the branch is a sum of several plain convolutions of the fork: one convolution, written apart."""
    index = walk.index
    stack, terms = [branch], 0
    while stack:
        node = index.strip(stack.pop())
        inputs = [x for x in index.data[node] if not index.constant[x]]
        if node is fork:
            terms += 1
        elif index.name[node] == "add" and node not in walk.site_of:
            stack += inputs
        elif index.name[node] in ops.CONV or index.name[node] == "batch_norm":
            stack += inputs[:1]
        else:
            return False
    return terms > 1
