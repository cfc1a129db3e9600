"""Shortcuts that change the stream's shape on the way: projections, pooling, padding."""

from __future__ import annotations

from torch import fx

from resfx.passes.find import operators as ops
from resfx.passes.find.draft import Draft
from resfx.passes.find.index import Index
from resfx.passes.find.terms import Reading
from resfx.passes.find.walk import Span, Walk


def projection_form(walk: Walk, add: Reading) -> Draft | None:
    """A shortcut with weights, pooling or padding of its own, beside a branch that has more and bends."""
    index, branch = walk.index, add.branch.value
    fork, path = _strip_projection(add.shortcut.value, index)
    if not path:
        return None
    found = walk.between(fork, branch)
    region = set(found.nodes)
    for i, step in enumerate(path):
        if step in region:  # the branch starts later on the shortcut's own way: that is the fork
            fork, path = step, path[:i]
            found = walk.between(fork, branch)
            break
    weights = sum(index.role[n] == "weight" for n in path)
    resampled = any(index.role[n] == "pool" or index.name[n] in ops.REDUCE | ops.RESAMPLE for n in path)
    if not (weights or resampled) or not (found.reached and found.weighted):
        return None
    if any(s.fork is fork or walk.chain[s.node][1] > 1 for s in found.sites):
        return None  # a way around several adds, not a block with one inside
    count = sum(index.role[n] == "weight" for n in found.nodes)
    bends = any(index.role[n] in ("act", "matmul") for n in found.nodes)
    if not bends or count <= weights or _only_upsampled(fork, branch, found, index) or _in_cell(add.node, index):
        return None
    return walk.draft(add, fork, "projection" if weights else "resampled", found)


def _in_cell(node: fx.Node, index: Index) -> bool:
    """Whether the add is one of several sums that are concatenated, as the cells of searched networks are."""
    joins = [u for u in node.users if index.name.get(u) == "cat"]
    return any(sum(index.name[x] == "add" for x in index.data[u]) > 2 for u in joins)


def _only_upsampled(fork: fx.Node, branch: fx.Node, found: Span, index: Index) -> bool:
    """Whether every way from the fork to the branch goes through an upsampling: a feature pyramid's lateral."""
    reached = {fork}
    for node in found.nodes:
        if index.role[node] != "upsample" and any(x in reached or index.strip(x) in reached for x in index.data[node]):
            reached.add(node)
    return branch not in reached


def _strip_projection(node: fx.Node, index: Index) -> tuple[fx.Node, list[fx.Node]]:
    """Up through at most two weighted operators with their norms, affine terms, activations, pooling and
    padding; and the operators passed, from the add upward."""
    weights, limit = 0, 2
    path: list[fx.Node] = []
    while True:
        node = index.strip(node)
        role, name = index.role[node], index.name[node]
        inputs = [x for x in index.data[node] if not index.constant[x]]
        if len(inputs) != 1 and not (role == "norm" and inputs):
            return node, path
        resamples = role == "pool" or name in ops.REDUCE | ops.RESAMPLE or name == "cat"
        if role == "weight" and weights < limit:
            weights += 1
        elif role == "act" and weights:
            limit = weights  # an activation may open a shortcut; one between its weights makes it a branch
        elif not (resamples or role in ("norm", "scale") or name == "add"):
            return node, path
        path.append(node)
        node = inputs[0]
