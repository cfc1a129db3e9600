"""Graph surgery for methods of scope ``site``: each claimed add becomes a call of the method's module."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from resfx.passes.find.graph import hint
from resfx.passes.find.operators import is_inplace
from resfx.passes.find.site import Site


def rewrite_site(graph: fx.Graph, site: Site, module: nn.Module, path: str, method: str) -> fx.Node:
    """Replace one add; returns the node that now carries the stream.

    Only this add changes. One that is more than ``x + f`` (``x + alpha * f``, ``addcmul``) stays in the graph and is
    handed to the module as ``total``: it rounds once, which two operators would not.

    Args:
        module: what will run, for its signature.
        path: where the module will live in the model's tree.
        method: the method's name, recorded on every new node.
    """
    with graph.inserting_after(site.node):
        anchor = graph.call_function(_mark)  # everything new goes before this, in order
    with graph.inserting_before(anchor):
        x, f = (term.emit(graph) for term in site.terms)
        rows = [_to_rows(graph, site, n) for n in (x, f, site.context)]
        kwargs: dict[str, Any] = {}
        if not site.is_plain and "total" in inspect.signature(module.forward).parameters:
            out_of_place(site.node)
            kwargs["total"] = _to_rows(graph, site, site.node)
        call = graph.call_module(path, tuple(rows), kwargs)
        result = _from_rows(graph, site, call)
    created = list(_between(site.node, anchor))
    graph.erase_node(anchor)
    for node in created:
        node.meta = {**{k: v for k, v in site.node.meta.items() if k != "from_node"}, "resfx": method}
    site.node.replace_all_uses_with(result, delete_user_cb=lambda user: user not in created)
    for node in (site.node, *site.joins):
        if not node.users:
            graph.erase_node(node)
    return result


def _mark() -> None:
    """Target of a node that never runs."""


def _between(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    node = first.next
    while node is not last:
        yield node
        node = node.next


def _to_rows(graph: fx.Graph, site: Site, node: fx.Node | None) -> fx.Node | None:
    if node is None or site.axis == -1:
        return node
    return graph.call_function(torch.movedim, (node, site.axis, -1))


def _from_rows(graph: fx.Graph, site: Site, node: fx.Node) -> fx.Node:
    order = _memory_order(site.node)
    moved = node if site.axis == -1 else graph.call_function(torch.movedim, (node, -1, site.axis))
    if order == sorted(order):
        return node if site.axis == -1 else graph.call_method("contiguous", (moved,))
    back = [order.index(i) for i in range(len(order))]
    dense = graph.call_method("contiguous", (graph.call_function(torch.permute, (moved, order)),))
    return graph.call_function(torch.permute, (dense, back))


def _memory_order(node: fx.Node) -> list[int]:
    """Axes from the slowest to the fastest in memory. A convolution rounds otherwise on another layout."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return []
    steps = [hint(s) or 0 for s in value.stride()]
    sizes = [hint(s) for s in value.shape]
    # The place of an axis of size one is free: it stays where it is written.
    order = sorted((i for i, n in enumerate(sizes) if n != 1), key=lambda i: -steps[i])
    moving = iter(order)
    return [i if n == 1 else next(moving) for i, n in enumerate(sizes)]


def out_of_place(node: fx.Node) -> None:
    """Let an in-place add give a tensor of its own: what it wrote over may be read again."""
    if not is_inplace(node):
        return
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        packet = getattr(torch.ops.aten, target._schema.name.split("::")[-1][:-1])
        node.target = getattr(packet, target._overloadname)
    elif node.op == "call_method":
        node.target = str(target)[:-1]
    else:
        node.target = operator.add if target is operator.iadd else operator.sub
