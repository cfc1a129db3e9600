"""Tying the identity operators of a traced graph to the calls that a recorder has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from resfx._torch import is_mark
from resfx.errors import CaptureError

from .record import CallRecord, enter, keep, leave

_MARKS = {"enter": enter, "leave": leave, "keep": keep}
Event = tuple[str, Any, int, bool]
"""What left marks: ``enter``, ``leave``, ``keep`` or ``hold``; a call or an object; how many; whether after a fence."""


def settle(graph: fx.Graph, calls: Sequence[CallRecord], events: Sequence[Event], kept: int) -> None:
    """Make identity operators :func:`enter` and :func:`leave`; in ``node.meta["call"]`` of every node is the innermost
    call that made it.

    Args:
        events: in the order of the trace.
        kept: how many of the last results left the graph for their marks' sake: they are results no more.

    Raises:
        CaptureError: where the graph has other marks than were made.
    """
    output = graph.output_node()
    results = tuple(output.args[0])  # type: ignore[arg-type]
    output.args = (results[: len(results) - kept],)
    order = {n: i for i, n in enumerate(graph.nodes)}
    found = [n for n in graph.nodes if is_mark(n)]
    if len(found) != sum(count + fenced for _, _, count, fenced in events):
        raise CaptureError(
            "cannot tell the calls in this model apart",
            "its graph has other marks than were made, as where it returns a tensor that it was given and wrote into",
            "x = x + f(x) where it has x += f(x) on an argument, or return a clone",
        )  # fmt: skip
    marks = iter(found)
    borders: list[tuple[float, str, CallRecord]] = []
    for side, subject, count, fenced in events:
        fence = next(marks) if fenced else None
        mine = [next(marks) for _ in range(count)]
        if side == "hold":
            subject.leaves = [_unmarked(graph, n) for n in mine]
        else:
            first = fence if fence is not None else mine[0] if mine else None
            if side != "keep":
                borders.append((order[first] - 0.5 if first is not None else 0, side, subject))
            for slot, node in enumerate(mine):
                value = _carried(node)
                node.meta["val"] = value.meta["val"] if isinstance(value, fx.Node) else value
                node.target, node.args = _MARKS[side], (value, subject.number, slot)
        if fence is not None:
            graph.erase_node(fence)
    _assign(graph, calls, order, borders)


def _assign(
    graph: fx.Graph,
    calls: Sequence[CallRecord],
    order: dict[fx.Node, int],
    borders: list[tuple[float, str, CallRecord]],
) -> None:
    stack = [calls[0]]
    waiting = borders[1:]
    for node in graph.nodes:
        while waiting and waiting[0][0] < order[node]:
            _, side, call = waiting.pop(0)
            if side == "enter":
                stack.append(call)
            elif call in stack[1:]:
                del stack[stack.index(call) :]
        node.meta["call"] = stack[-1]


def _carried(node: fx.Node) -> Any:
    """What a mark carries: the tensor, or the size that a tensor was made to carry."""
    value = node.args[0]
    if isinstance(value, fx.Node) and value.target is torch.ops.aten.empty.memory_format:
        value = value.args[0][0]  # type: ignore[index]
    if isinstance(value, fx.Node) and value.target is torch.sym_ite:
        return value.args[0]
    return value


def _unmarked(graph: fx.Graph, node: fx.Node) -> Any:
    value = _carried(node)
    node.replace_all_uses_with(value)
    graph.erase_node(node)
    return value
