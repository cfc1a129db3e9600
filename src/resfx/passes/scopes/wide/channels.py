"""Doing to every channel of a wide state what the host does to its one state between two adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from resfx.passes.capture.marking.record import enter, leave
from resfx.passes.find.graph import shape
from resfx.passes.find.index import Index
from resfx.passes.find.operators import operator_name
from resfx.passes.scopes.insert import out_of_place
from resfx.passes.scopes.rows import from_rows, to_rows, value_in_rows

# These act on each element, or on the last axis by their arguments, whatever the number of axes before it.
_NAMES = (
    "to _to_copy clone contiguous detach alias dropout mul add sub div pow rsqrt sqrt square reciprocal neg float half"
    " double bfloat16 type relu gelu silu tanh sigmoid hardswish leaky_relu elu softplus mish identity abs"
)
_ELEMENTWISE = frozenset(_NAMES.split())


def is_carriable(node: fx.Node, index: Index) -> bool:
    """Whether a node between two adds can be run for each channel: it learns nothing from other data and mixes no
    features but by a norm."""
    if node.op not in ("call_function", "call_method"):
        return False
    return index.role[node] in ("pass", "norm", "act", "scale") or index.name[node] in (
        "add", "sub", "pow", "square", "mean", "var", "rsqrt", "sqrt", "reciprocal", "abs",
    )  # fmt: skip


def carry(
    graph: fx.Graph, wide: fx.Node, source: fx.Node, nodes: Sequence[fx.Node], channels: int, axis: int
) -> fx.Node:
    """Run copies of ``nodes``, which start from ``source`` with ``d`` features on ``axis``, on ``wide (..., n, d)``.

    At once where every operator allows it, else channel by channel. New nodes go to the graph's insertion point.
    """
    if all(_acts_on_rows(n, {source, *nodes}, axis) for n in nodes):
        return _copy(graph, {source: wide}, nodes, channels, axis)
    first = next(i for i, n in enumerate(nodes) if n.target not in (enter, leave))
    last = next(i for i in range(len(nodes), 0, -1) if nodes[i - 1].target not in (enter, leave))
    before, inside, after = (
        nodes[:first],
        nodes[first:last],
        nodes[last:],
    )  # a call takes and gives all channels at once
    wide = _copy(graph, {source: wide}, before, channels, axis) if before else wide
    start = before[-1] if before else source
    parts = []
    for j in range(channels):
        channel = graph.call_function(torch.ops.aten.select.int, (wide, -2, j))
        laid = channel if axis == -1 else from_rows(graph, channel, axis, start)
        parts.append(to_rows(graph, _copy(graph, {start: laid}, inside), axis))
    wide = graph.call_function(torch.stack, (parts, -2))
    return _copy(graph, {inside[-1]: wide}, after, channels, axis) if after else wide


def _copy(
    graph: fx.Graph, env: dict[fx.Node, fx.Node], nodes: Sequence[fx.Node], channels: int = 0, axis: int = -1
) -> fx.Node:
    """Copies of the host's operators; on a state of several channels, if there are ``channels``."""
    for node in nodes:
        copy = env[node] = graph.node_copy(node, lambda n: env.get(n, n))
        out_of_place(copy)  # the state is still to be read: by what mixes its channels, and in the backward pass
        copy.meta["carried"] = True
        if channels:
            copy.meta["wide"] = True
            copy.meta["val"] = widened(node.meta.get("val"), channels, axis)
    return env[nodes[-1]]


def widened(value: Any, channels: int, axis: int) -> Any:
    """A tensor of the shape of a wide state ``(..., n, d)``, from one with its features on ``axis``; else ``None``."""
    rows = value_in_rows(value, axis)
    return None if rows is None else rows.unsqueeze(-2).expand(*rows.shape[:-1], channels, rows.shape[-1])


def _acts_on_rows(node: fx.Node, states: set[fx.Node], axis: int) -> bool:
    name = operator_name(node)
    others = [n for n in node.all_input_nodes if n not in states]
    along = 1 if axis == -1 else 0  # a gain of every feature lies along the last axis, whatever comes before it
    if any((sizes := shape(n)) is None or len(sizes) > along for n in others):
        return False
    if axis != -1 and name not in _ELEMENTWISE:
        return False
    if name in ("layer_norm", "rms_norm"):
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("normalized_shape")
        return isinstance(size, (list, tuple)) and len(size) == 1
    if name in ("mean", "var"):
        return _dims(node) in (-1, [-1], (-1,))
    return name in _ELEMENTWISE


def _dims(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
