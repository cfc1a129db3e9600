"""The attention inside a residual branch: queries, keys, values, their projections, the mask and its direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from resfx.passes.find import operators as ops
from resfx.passes.find.graph import hint, outermost, shape
from resfx.passes.find.index import Index
from resfx.passes.find.mark import mark_of
from resfx.passes.find.site import Site

from .features import norm_output

NO_ATTENTION = "no attention in this branch"
CROSS = "cross-attention: its keys come from another stream"
WINDOWED = "attention over windows or pooled positions: its projections are not the stream's sequence"
CLASS_TOKEN = "a class token's attention: its stream is one position, and no sequence"
UNREADABLE = "a padding mask that is not (batch, positions)"
NOT_ROWS = "the stream is not (batch, positions, features), nor of several axes of positions, with features last or not"
REMEDIES = {
    UNREADABLE: "a mask of (batch, positions), one text to a row: a mask of pairs does not say what is padding",
}

_SCORE_STEPS = frozenset("mul div add sub masked_fill where to _to_copy clamp dropout tanh type_as".split())
_COMPARISONS = frozenset(["le", "lt", "ge", "gt"])
_TRIANGLES = frozenset(["tril", "triu"])
_KEEP, _DROP = ("attention_mask", "mask"), ("padding_mask",)


@dataclass(frozen=True)
class Attention:
    """One attention of a branch.

    Attributes:
        core: the fused attention or the softmax.
        query, key, value: its operands, heads split.
        projections: the weighted nodes that made each of them, by ``"q"``, ``"k"``, ``"v"``; one node for all where
            they are fused.
        causal: no position reads a later one.
        padding: the call's ``(batch, positions)`` mask, if the attention heeds one.
        padding_drops: the mask is true where a position must *not* be read.
        heads: number of query heads, if known.
        longer_keys: it reads more positions than the call has: there is a cache.
        windowed: it attends within windows, or from pooled positions: what it projects are not the stream's positions
            in their order. Attention of two streams together (of text and an image) is none: each projects its own.
    """

    core: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    projections: dict[str, fx.Node]
    causal: bool
    padding: fx.Node | None
    padding_drops: bool
    heads: int | None
    longer_keys: bool
    windowed: bool = False


def branch_region(site: Site, index: Index) -> set[fx.Node]:
    """The nodes between a site's fork and its add that the fork's value reaches."""
    start = index.position[site.fork]
    back, stack = {site.branch}, [site.branch]
    while stack:
        for x in index.data[stack.pop()]:
            if x not in back and index.position[x] > start:
                back.add(x)
                stack.append(x)
    reached = {site.fork}
    for node in sorted(back, key=index.position.__getitem__):
        if any(x in reached for x in index.data[node]):
            reached.add(node)
    return reached - {site.fork}


def find_attention(site: Site, region: set[fx.Node], index: Index) -> Attention | str:
    """The self-attention of a branch, or why there is none to act on."""
    operands = attention_operands(region, index)
    if operands is None:
        return NO_ATTENTION
    core, q, k, v, masks = operands
    if k not in region or v not in region:
        return CROSS
    stream, queries = shape(site.node), shape(q)
    if stream is None or queries is None or len(stream) < 3 or site.axis == 0:
        return NOT_ROWS
    along = positions_along(stream, site.axis)
    projections = _projections(q, k, v, region, index)
    if along == (1,) and _reads_more(projections.get("k"), index):
        return CLASS_TOKEN
    positions, rows = math.prod(hint(n) or 0 for n in along), hint(queries[-2]) or 0
    apart = len(queries) != 4 or hint(queries[0]) == hint(stream[0])  # each row of the batch is one of the stream's
    ancestors = _mask_ancestors(masks, index)
    padding, drops = _padding(ancestors)
    if padding is None and any(_is_user_mask(n) for n in ancestors):
        return UNREADABLE
    flag = core.kwargs.get("is_causal", core.args[5] if len(core.args) > 5 else False)
    causal = flag is True or any(_orders_positions(n, index) for n in ancestors)
    heads = hint(queries[1]) if len(queries) == 4 else None
    keys = shape(k)
    longer = keys is not None and (hint(keys[-2]) or 0) > rows
    windowed = not (apart and (rows == positions or (len(queries) == 4 and rows > positions)))
    return Attention(core, q, k, v, projections, causal, padding, drops, heads, longer, windowed)


def positions_along(sizes: Sequence[Any], axis: int) -> tuple[Any, ...]:
    """The sizes of the axes of positions: all but the batch's and that of the features."""
    features = axis % len(sizes)
    return tuple(n for i, n in enumerate(sizes) if i not in (0, features))


def _reads_more(projection: fx.Node | None, index: Index) -> bool:
    """Whether keys are projected from several positions, though the stream has one: it is joined with others before."""
    sizes = shape(index.data[projection][0]) if projection is not None else None
    return sizes is not None and len(sizes) == 3 and hint(sizes[1]) != 1


def attention_operands(
    region: set[fx.Node], index: Index
) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node, list[fx.Node]] | None:
    """The core of a region's attention, its query, key and value, and its masks; ``None`` where it has none."""
    for node in sorted(region, key=index.position.__getitem__):
        if index.name[node] in ops.ATTENTION and len(node.all_input_nodes) >= 3:
            mask = node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None)
            q, k, v = node.args[:3]
            return node, q, k, v, [mask] if isinstance(mask, fx.Node) else []  # type: ignore[return-value]
        if index.name[node] in ("softmax", "_softmax") and (found := _written_out(node, region, index)):
            return found
    return None


def _written_out(
    softmax: fx.Node, region: set[fx.Node], index: Index
) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node, list[fx.Node]] | None:
    """``softmax(q @ k^T + mask) @ v`` spelled out."""
    node, masks = index.data[softmax][0], []
    while index.role[node] != "matmul" and index.name[node] != "baddbmm":
        inputs = [x for x in index.data[node] if x in region]
        onward = [x for x in inputs if index.name[x] not in _COMPARISONS]
        steps = index.name[node] in _SCORE_STEPS or index.role[node] == "pass" or _mixes_heads(node, index)
        if not steps or len(onward) != 1:
            return None
        masks += [x for x in index.data[node] if x is not onward[0]]
        node = onward[0]
    factors = node.args[1:3] if index.name[node] == "baddbmm" else index.data[node]  # bias + q @ k^T
    masks += [x for x in index.data[node] if x not in factors]
    scores = [x for x in factors if isinstance(x, fx.Node) and x in region]
    weights = softmax
    onto = lambda u: u in region and (index.role[u] in ("pass", "matmul") or _mixes_heads(u, index))
    while len(users := [u for u in weights.users if onto(u)]) == 1:
        weights, last = users[0], weights
        if index.role[weights] == "matmul":
            values = [x for x in index.data[weights] if x is not last]
            if len(scores) == 2 and len(values) == 1:
                key = _untransposed(scores[1], index)
                query, key, value = (_with_heads(x, index) for x in (scores[0], key, values[0]))
                return softmax, query, key, value, masks
            return None
    return None


def _mixes_heads(node: fx.Node, index: Index) -> bool:
    """Whether a node is a projection of scores from heads to heads (talking heads)."""
    return index.name[node] == "linear" and index.rank(node) == 4


def _untransposed(key: fx.Node, index: Index) -> fx.Node:
    return index.data[key][0] if index.name[key] in ("transpose", "permute", "mT") and index.data[key] else key


def _with_heads(operand: fx.Node, index: Index) -> fx.Node:
    """The operand as ``(batch, heads, positions, features)``, where a host flattens the first two for its product."""
    node = operand
    while index.rank(node) == 3 and index.role[node] == "pass" and len(index.data[node]) == 1:
        node = index.data[node][0]
    split, merged = shape(node), shape(operand)
    if split is None or merged is None or len(split) != 4:
        return operand
    return node if [hint(n) for n in split[2:]] == [hint(n) for n in merged[1:]] else operand


def _mask_ancestors(masks: Iterable[fx.Node], index: Index) -> set[fx.Node]:
    """Everything a mask is computed from, short of learned biases."""
    found = set(masks)
    stack = list(found)
    while stack:
        node = stack.pop()
        if index.name[node] in ("embedding", "linear"):
            continue
        for x in index.data[node]:
            if x not in found:
                found.add(x)
                stack.append(x)
    return found


def _orders_positions(node: fx.Node, index: Index) -> bool:
    """Whether a node of a mask compares positions with one another: ``j <= i``, or a triangle."""
    if index.name[node] in _TRIANGLES:
        return True
    if node.op == "get_attr" or mark_of(node).lifted:
        return _is_triangle(node, index)
    if index.name[node] not in _COMPARISONS or len(index.data[node]) != 2:
        return False
    return not any(index.name[x] == "abs" for x in index.data[node])


def _is_triangle(node: fx.Node, index: Index) -> bool:
    """A stored causal mask, as in nanoGPT's ``bias`` buffer."""
    value = index.root
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    if not isinstance(value, torch.Tensor) or value.dim() < 2 or value.shape[-1] != value.shape[-2] or value.is_meta:
        return False
    square = value.reshape(-1, *value.shape[-2:])[0]
    upper = torch.ones_like(square, dtype=torch.bool).triu(1)
    inside, outside = square[~upper], square[upper]
    return bool(outside.numel()) and bool((outside != inside[0]).all()) and bool((inside == inside[0]).all())


def _is_user_mask(node: fx.Node) -> bool:
    """A mask among the call's arguments."""
    return node.op == "placeholder" and not mark_of(node).lifted and _argument(node).endswith(_KEEP + _DROP)


def _argument(node: fx.Node) -> str:
    """The name of an input: of the call's argument, where the capture knows it."""
    return mark_of(node).argument or str(node.target)


def _padding(ancestors: set[fx.Node]) -> tuple[fx.Node | None, bool]:
    for node in ancestors:
        sizes = shape(node)
        if _is_user_mask(node) and (sizes is None or len(sizes) == 2):
            return node, _argument(node).endswith(_DROP)
    return None, False


def _projections(q: fx.Node, k: fx.Node, v: fx.Node, region: set[fx.Node], index: Index) -> dict[str, fx.Node]:
    """The weighted node behind each operand, through rotations, norms, caches and repeated heads."""
    found = {}
    for name, operand in (("q", q), ("k", k), ("v", v)):
        stack, seen, weighted = [operand], {operand}, []
        while stack:
            node = stack.pop()
            if index.role[node] == "weight":
                weighted.append(node)
                continue
            fresh = [x for x in index.data[node] if x in region and x not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        if len(weighted) == 1:
            found[name] = weighted[0]
    return found


def ready_to_rotate(projection: fx.Node, region: set[fx.Node], index: Index) -> tuple[fx.Node, bool]:
    """Where a projection's output is ready for its rotation: after a norm over the head, if the host has one.

    Returns:
        the node, and whether its axes are ``(batch, heads, positions, features)``.
    """
    node, swapped = projection, False
    for _ in range(6):
        near = [u for x in (node, *node.users) if x is node or index.role[x] == "pass" for u in x.users]
        if norms := [u for u in near if u in region and index.role[u] == "norm" and index.rank(u) in (3, 4)]:
            return outermost(norm_output(norms[0], index)), swapped
        onward = [u for u in node.users if u in region and index.role[u] == "pass"]
        if len(onward) != 1:
            break
        node = onward[0]
        swapped ^= index.name[node] == "transpose" and set(node.args[1:3]) <= {1, 2, -2, -3}
    return projection, False
