"""Features last: what methods are handed where a host keeps them on another axis, and the way back.

A method sees rows, ``(..., d)``. On a channel-first stream, such as ``(batch, d, height, width)``, rows are views of
the host's tensors, and what a method gives is laid out again as the host's own code would have laid it out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from resfx.passes.find.graph import hint


def to_rows(graph: fx.Graph, node: fx.Node, axis: int) -> fx.Node:
    """A tensor with its feature axis last: itself, or a view made at the graph's insertion point."""
    if axis == -1:
        return node
    return _valued(graph.call_function(torch.movedim, (node, axis, -1)), value_in_rows(node.meta.get("val"), axis))


def from_rows(graph: fx.Graph, rows: fx.Node, axis: int, like: fx.Node) -> fx.Node:
    """Rows with their features on ``axis`` again, lying as ``like`` does in memory: a convolution rounds by that."""
    order, value = _memory_order(like), like.meta.get("val")
    moved = rows if axis == -1 else _valued(graph.call_function(torch.movedim, (rows, -1, axis)), value)
    if order == sorted(order):
        return rows if axis == -1 else _valued(graph.call_method("contiguous", (moved,)), value)
    back = [order.index(i) for i in range(len(order))]
    turned = value.permute(order) if isinstance(value, torch.Tensor) else None
    dense = _valued(graph.call_function(torch.permute, (moved, order)), turned)
    dense = _valued(graph.call_method("contiguous", (dense,)), turned)
    return _valued(graph.call_function(torch.permute, (dense, back)), value)


def value_in_rows(value: Any, axis: int) -> Any:
    """What a graph knows of a tensor, for the tensor with its features last; ``None`` where it knows nothing."""
    return value.movedim(axis, -1) if isinstance(value, torch.Tensor) else None


def _valued(node: fx.Node, value: Any) -> fx.Node:
    if value is not None:
        node.meta["val"] = value
    return node


def _memory_order(node: fx.Node) -> list[int]:
    """Axes from the slowest to the fastest in memory."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return []
    steps = [hint(s) or 0 for s in value.stride()]
    sizes = [hint(s) for s in value.shape]
    # The place of an axis of size one is free: it stays where it is written.
    order = sorted((i for i, n in enumerate(sizes) if n != 1), key=lambda i: -steps[i])
    moving = iter(order)
    return [i if n == 1 else next(moving) for i, n in enumerate(sizes)]
