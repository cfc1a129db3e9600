"""Hosts rewritten once and handed out as they were made, and new parameters moved off their start."""

from __future__ import annotations

import functools

import torch
from hosts import BY_NAME
from torch import fx

import resfx
from resfx.export.trace import flatten_model


def rewritten(name: str, mode: object = "ddl"):
    """``(original, rewritten, inputs)`` of a host, made once and handed out as it was made."""
    model, new, inputs, state = _rewritten(name, mode)
    new.load_state_dict(state)
    for module in (model, new):
        module.eval().zero_grad()
    return model, new, inputs


@functools.cache
def _rewritten(name: str, mode: object):
    host = BY_NAME[name]
    model = host.make()
    inputs = host.inputs(2, 7)
    new = resfx.rewrite(model, mode, kwargs=inputs)
    return model, new, inputs, {k: v.clone() for k, v in new.state_dict().items()}


def randomise(module, std: float = 0.1) -> None:
    """Move the new parameters off their start, so that the rewrite acts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.new_parameters().values():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter))


def recompute_activations(model, **options) -> None:
    """Hugging Face's own switch, by the name that the installed version has for it."""
    name = "activation_checkpointing_enable"  # newer versions
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")(options or None)


def flat_graph(new, *args, **kwargs) -> fx.Graph:
    """The whole rewritten graph of one call of a rewritten model."""
    return flatten_model(new, args or None, kwargs or None).variant.capture.graph
