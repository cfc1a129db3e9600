"""Where a query, key or value stands alone: behind its projection, fused or not, after a norm over the head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from resfx.passes.find.graph import hint, outermost, shape
from resfx.passes.find.index import Index
from resfx.passes.find.mark import mark_of

from .attention import WINDOWED, Attention, positions_along, ready_to_rotate
from .branch import Branch

Layout = Literal["btc", "bthd", "bhtd"]

UNPROJECTED = "the projections of queries, keys and values were not found"
FLAT = "the projection's output is not (batch, positions, features)"
ALIKE = "as many heads as positions: which axis is which cannot be told"


@dataclass(frozen=True)
class Projected:
    """A query, key or value before its rotation.

    Attributes:
        node: carries it.
        layout: ``"btc"`` with the heads' features side by side, ``"bthd"`` or ``"bhtd"``.
        heads, head_dim: as the projection has them: grouped keys and values have fewer heads than queries.
    """

    node: fx.Node
    layout: Layout
    heads: int
    head_dim: int


def projected(branch: Branch, name: str, behind: bool = True) -> Projected | str:
    """The query, key or value (``"q"``, ``"k"``, ``"v"``) of a branch's self-attention, or why it was not found.

    Args:
        behind: as earlier methods left it; else as the host computes it.
    """
    attention, index = branch.attention, branch.index
    if isinstance(attention, str):
        return attention
    if attention.windowed:
        return WINDOWED
    if name not in attention.projections:
        return UNPROJECTED
    ways = {n: _way(attention, n, index) for n in attention.projections}
    others = set[fx.Node]().union(*(way for n, way in ways.items() if n != name))
    own = sorted((n for n in ways[name] if n not in others), key=index.position.__getitem__)
    rotated, size = {"q": attention.query, "k": attention.key, "v": attention.value}[name], shape(branch.site.node)
    sizes = shape(rotated)
    if sizes is None or size is None or (features := hint(sizes[-1])) is None:
        return FLAT
    along = positions_along(size, branch.site.axis)
    positions = along[0] if len(along) == 1 else math.prod(hint(n) or 0 for n in along)
    placed = [n for n in own if behind and mark_of(n).method]
    start = next((n for n in own if _layout(n, positions) is not None), None)
    if start is None or any(index.role[n] not in ("weight", "pass", "part") for n in own[: own.index(start)]):
        return FLAT
    node, layout = (placed[-1], _layout(placed[-1], positions)) if placed else _ready(branch, start, positions)
    if not layout:
        return FLAT if layout is None else ALIKE
    found = shape(node)
    assert found is not None
    last = hint(found[-1]) or 0
    heads = last // features if layout == "btc" else hint(found[1 if layout == "bhtd" else 2])
    if not heads or last != (heads * features if layout == "btc" else features):
        return FLAT
    return Projected(node, layout, heads, features)


def _ready(branch: Branch, start: fx.Node, positions: Any) -> tuple[fx.Node, Layout | Literal[""] | None]:
    """Where a projection goes on to its rotation, and how it lies there."""
    ready, swapped = ready_to_rotate(start, branch.region, branch.index)
    layout = _layout(ready, positions)
    if layout == "" and _layout(start, positions) == "btc":
        layout = "bhtd" if swapped else "bthd"
    return outermost(ready), layout


def _way(attention: Attention, name: str, index: Index) -> set[fx.Node]:
    """The nodes from a projection to the operand of the attention that it becomes."""
    start, end = attention.projections[name], {"q": attention.query, "k": attention.key, "v": attention.value}[name]
    back, stack = {end}, [end]
    while stack:
        for x in index.data[stack.pop()]:
            if x not in back and index.position[x] >= index.position[start]:
                back.add(x)
                stack.append(x)
    reached = {start}
    for node in sorted(back, key=index.position.__getitem__):
        if any(x in reached for x in index.data[node]):
            reached.add(node)
    return reached & back


def _layout(node: fx.Node, positions: Any) -> Layout | Literal[""] | None:
    """How a node lies; ``""`` where positions and heads cannot be told apart, ``None`` where it is no projection."""
    sizes, count = shape(node), hint(positions)
    if sizes is None or len(sizes) not in (3, 4):
        return None
    if len(sizes) == 3:
        return "btc" if hint(sizes[1]) == count else None
    match = [hint(sizes[1]) == count, hint(sizes[2]) == count]
    if all(match):  # an open size is that of the positions
        match = [isinstance(sizes[i], torch.SymInt) for i in (1, 2)]
        if count == 1 and not any(match):
            return "bhtd"  # one head, one position: both are right
        if match[0] == match[1]:
            return ""
    return "bthd" if match[0] else "bhtd" if match[1] else None
