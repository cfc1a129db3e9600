"""Graph surgery for methods of scope ``site``: each claimed add becomes a call of the method's module."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from resfx.passes.find.graph import hint
from resfx.passes.find.site import Site


def rewrite_site(graph: fx.Graph, site: Site, module: nn.Module, path: str, method: str) -> fx.Node:
    """Replace one add; returns the node that now carries the stream.

    Only this add changes. ``x + alpha * f`` stays in the graph and is handed to the module as ``total``: it rounds
    once, which two operators would not.

    Args:
        module: what will run, for its signature.
        path: where the module will live in the model's tree.
        method: the method's name, recorded on every new node.
    """
    shortcut, branch = _operands(site)
    plain = site.alpha == 1
    with graph.inserting_after(site.node):
        anchor = graph.call_function(_mark)  # everything new goes before this, in order
    with graph.inserting_before(anchor):
        x, f = _weigh(graph, site, shortcut, branch)
        rows = [_to_rows(graph, site, n) for n in (x, f, site.context)]
        kwargs: dict[str, Any] = {}
        if not plain and "total" in inspect.signature(module.forward).parameters:
            _out_of_place(site.node)
            kwargs["total"] = _to_rows(graph, site, site.node)
        call = graph.call_module(path, tuple(rows), kwargs)
        result = _from_rows(graph, site, call)
    created = list(_between(site.node, anchor))
    graph.erase_node(anchor)
    for node in created:
        node.meta = {**{k: v for k, v in site.node.meta.items() if k != "from_node"}, "resfx": method}
    site.node.replace_all_uses_with(result, delete_user_cb=lambda user: user not in created)
    if not site.node.users:
        graph.erase_node(site.node)
    return result


def _mark() -> None:
    """Target of a node that never runs."""


def _between(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    node = first.next
    while node is not last:
        yield node
        node = node.next


def _operands(site: Site) -> tuple[Any, Any]:
    """Shortcut and branch as the add takes them now; an earlier rewrite may have replaced either."""
    args = [*site.node.args, *site.node.kwargs.values()]
    return args[site.shortcut_index], args[1 - site.shortcut_index]


def _weigh(graph: fx.Graph, site: Site, x: Any, f: Any) -> tuple[Any, Any]:
    if site.alpha == 1:
        return x, f
    if site.shortcut_index == 1:
        return graph.call_function(operator.mul, (x, site.alpha)), f
    return x, graph.call_function(operator.mul, (f, site.alpha))


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


def _out_of_place(node: fx.Node) -> None:
    if node.target is torch.ops.aten.add_.Tensor:
        node.target = torch.ops.aten.add.Tensor
    elif node.op == "call_method" and node.target == "add_":
        node.target = "add"
