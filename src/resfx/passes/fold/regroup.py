"""Cutting a rewritten graph into segments: the repeated blocks of its streams, and what lies before, between, behind.

Nothing is moved, so random numbers are drawn and buffers are written in the order of the flat graph. Reads over depth
and the ends of a widened stream stand between blocks, whose code is then equal from the first to the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import fx

from resfx._torch import enter_autocast, exit_autocast
from resfx.passes.capture.normalize import enter_grad_mode, exit_grad_mode
from resfx.passes.find.mark import mark_of
from resfx.passes.find.site import Site

READ = "~read"
"""The label of what the depth methods put between blocks."""

_ENTER = (enter_grad_mode, enter_autocast)
_EXIT = (exit_grad_mode, exit_autocast)


@dataclass(eq=False)
class Segment:
    """Consecutive nodes of one block, or of what stands outside all blocks.

    Attributes:
        block: qualified name of the block's module; ``""`` outside.
        read: whether it is a read over depth.
        nodes: in order; inputs, parameters and sizes known from the graph's inputs belong to no segment.
    """

    block: str
    read: bool = False
    nodes: list[fx.Node] = field(default_factory=list)


def block_names(sites: Iterable[Site]) -> list[str]:
    """The repeated blocks that a model's streams consist of; of nested ones the outermost."""
    names = dict.fromkeys(s.block for s in sites if s.block.rpartition(".")[2].isdigit())
    return [n for n in names if not any(n.startswith(f"{other}.") for other in names)]


def segments_of(graph: fx.Graph, names: list[str]) -> list[Segment]:
    """The segments of a graph in order.

    Args:
        names: of the repeated blocks.
    """
    labels = _labels(graph, names)
    found: list[Segment] = []
    last: tuple[str, str] | None = None
    for node in graph.nodes:
        if node not in labels:
            continue
        if labels[node] != last:
            last = labels[node]
            found.append(Segment("", True) if last[0] == READ else Segment(last[0]))
        found[-1].nodes.append(node)
    return found


def is_free(node: fx.Node, free: set[fx.Node]) -> bool:
    """Whether a node is a size, or a number computed from sizes, of the graph's own inputs."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return False
    return all(n in free or n.op in ("placeholder", "get_attr") for n in node.all_input_nodes)


def _labels(graph: fx.Graph, names: list[str]) -> dict[fx.Node, tuple[str, str]]:
    """``(block, which call of it)`` of every node that is part of a segment."""
    outside = ("", "")
    labels: dict[fx.Node, tuple[str, str]] = {}
    free: set[fx.Node] = set()
    known: dict[str, tuple[str, str]] = {}
    position: dict[fx.Node, int] = {}
    for number, node in enumerate(graph.nodes):
        position[node] = number
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if is_free(node, free):
            free.add(node)
            continue
        if _stands_apart(node):
            labels[node] = (READ, "")
        elif (path := _path(node)) is not None:
            if path not in known:
                known[path] = _block_of(path, names)
            labels[node] = known[path]
        else:  # glue of our own: it goes with what it reads
            inputs = [n for n in node.all_input_nodes if n in labels]
            labels[node] = labels[max(inputs, key=position.__getitem__)] if inputs else outside
    _close_regions(graph, labels)
    return labels


def _path(node: fx.Node) -> str | None:
    """The call that made a node, repeated calls of one module told apart by ``@n``."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    path = next(reversed(stack.values()))[0]
    return path.removeprefix("L['self'].") if isinstance(path, str) else ""


def _block_of(path: str, names: list[str]) -> tuple[str, str]:
    parts = path.split(".")
    plain = [re.sub(r"@\d+", "", p) for p in parts]
    for name in names:
        size = name.count(".") + 1
        if ".".join(plain[:size]) == name:
            return name, ".".join(parts[:size])
    return "", ""


def _stands_apart(node: fx.Node) -> bool:
    mark = mark_of(node)
    return (mark.scope == "depth" and not mark.inside) or (mark.scope == "wide" and mark.role in ("expand", "collapse"))


def _close_regions(graph: fx.Graph, labels: dict[fx.Node, tuple[str, str]]) -> None:
    """Keep what runs under one grad or autocast mode in one segment, with the calls that enter and leave the mode."""
    for node in graph.nodes:
        if node.target not in _ENTER:
            continue
        inside = [node]
        while inside[-1].target not in _EXIT or inside[-1].args[0] is not node:
            inside.append(inside[-1].next)
        members = [n for n in inside if n in labels]
        found = {labels[n] for n in members if n.target not in (*_ENTER, *_EXIT)}
        label = found.pop() if len(found) == 1 else ("", "")
        labels.update(dict.fromkeys(members, label))
