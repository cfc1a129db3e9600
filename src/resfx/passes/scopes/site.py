"""Graph surgery for methods of scope ``site``: each claimed add becomes a call of the method's module."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from resfx.passes.find.graph import hint
from resfx.passes.find.mark import Mark
from resfx.passes.find.site import Site

from .insert import dress, inserting_behind, is_overwritten, out_of_place, take_over
from .places import place_at
from .surgery import Turn


def apply_site(turn: Turn) -> Sequence[Site]:
    """Scope ``site``: every chosen add is replaced by a module of its own."""
    tree, method = turn.surgery.tree, turn.application.method
    for site in turn.chosen:
        path = turn.module(site, "add", lambda site=site: method.build(place_at(site, tree)))  # type: ignore[misc]
        result = rewrite_site(turn.surgery.graph, site, tree.get_submodule(path), path, turn.mark("add"))
        turn.change(site, "replaced", result=result)
    return turn.chosen


def rewrite_site(graph: fx.Graph, site: Site, module: nn.Module, path: str, mark: Mark) -> fx.Node:
    """Replace one add; returns the node that now carries the stream.

    Only this add changes. One that is more than ``x + f`` (``x + alpha * f``, ``addcmul``) stays in the graph and is
    handed to the module as ``total``: it rounds once, which two operators would not.

    Args:
        module: what will run, for its signature.
        path: where the module lives in the model's tree.
        mark: of every new node.
    """
    with inserting_behind(graph, site.node) as created:
        x, f = (term.emit(graph) for term in site.terms)
        # A plain add keeps nothing of what it read; a module may, for its backward pass.
        x, f = (
            graph.call_function(torch.ops.aten.clone.default, (n,)) if is_overwritten(n, site.node) else n
            for n in (x, f)
        )
        rows = [_to_rows(graph, site, n) for n in (x, f, site.context)]
        kwargs: dict[str, Any] = {}
        if not site.is_plain and "total" in inspect.signature(module.forward).parameters:
            out_of_place(site.node)
            kwargs["total"] = _to_rows(graph, site, site.node)
        call = graph.call_module(path, tuple(rows), kwargs)
        result = _from_rows(graph, site, call)
    for node in created:
        dress(node, site.node, mark)
    take_over(site.node, result, *created)
    for node in (site.node, *site.joins):
        if not node.users:
            graph.erase_node(node)
    return result


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
