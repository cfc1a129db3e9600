"""What a method may know of the add it is built for."""

from __future__ import annotations

import torch
from torch import nn

from resfx.methods.base import Place
from resfx.passes.find.graph import dtype, hint, shape
from resfx.passes.find.site import Site


def place_at(site: Site, tree: nn.Module | None) -> Place:
    """The facts of a site that a method may know.

    Args:
        tree: the model, for the type and device of new parameters where the graph does not tell.
    """
    assert site.width is not None
    sizes = shape(site.context) if site.context is not None else None
    context = None
    if site.context is not None:
        context = hint(sizes[site.axis]) if sizes else site.width
    kind = dtype(site.context if site.context is not None else site.node)
    value = site.node.meta.get("val")
    parameter = next((p for p in tree.parameters() if p.is_floating_point()), None) if tree is not None else None
    fallback = parameter if parameter is not None else torch.empty(0)
    return Place(
        width=site.width, context_width=context, kind=site.kind, depth=site.depth, dtype=kind or fallback.dtype,
        device=value.device if isinstance(value, torch.Tensor) else fallback.device,
        block=site.block, rank=value.dim() if isinstance(value, torch.Tensor) else None,
    )  # fmt: skip
