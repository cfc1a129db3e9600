"""Graph surgery for methods of scope ``site``: each claimed add becomes a call of the method's module."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from resfx.passes.find.mark import Mark
from resfx.passes.find.site import Site

from .insert import dress, inserting_behind, is_overwritten, out_of_place, take_over
from .places import place_at
from .rows import from_rows, to_rows
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
        rows = [None if n is None else to_rows(graph, n, site.axis) for n in (x, f, site.context)]
        kwargs: dict[str, Any] = {}
        if not site.is_plain and "total" in inspect.signature(module.forward).parameters:
            out_of_place(site.node)
            kwargs["total"] = to_rows(graph, site.node, site.axis)
        call = graph.call_module(path, tuple(rows), kwargs)
        result = from_rows(graph, call, site.axis, like=site.node)
    for node in created:
        dress(node, site.node, mark)
    take_over(site.node, result, *created)
    for node in (site.node, *site.joins):
        if not node.users:
            graph.erase_node(node)
    return result
