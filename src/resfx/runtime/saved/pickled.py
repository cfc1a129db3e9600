"""A rewritten model in a pickle, for another process or ``torch.save(model)``: what it was, the recipe, its tensors.

Generated code and the classes that run it belong to one process. Where the pickle is read, the model is rewritten anew
with the same methods at the same adds, and given the very tensors that were sent: those in shared memory stay shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from resfx._torch import held_buffers, held_parameters
from resfx.errors import SaveError
from resfx.passes import Source, source_of
from resfx.passes.capture.clone import original_tree
from resfx.passes.capture.inputs import Example, outside_inference_mode
from resfx.passes.scopes.application import Application

Rewrite = Callable[[Source, nn.Module, list[Application], Example | None], Any]
"""The way through: ``(source, base, applications, example)`` to the rewritten model."""


def reduced(module: nn.Module, rewrite: Rewrite, source: Source, applications: Sequence[Application]) -> Any:
    """What ``__reduce_ex__`` returns for a rewritten model.

    Raises:
        SaveError: for a captured graph.
    """
    if source.shared:
        raise SaveError("cannot pickle a rewritten graph", "it has no code of its own to be captured from again",
                        "keep the graph that was passed to rewrite, and save new.state_dict()")  # fmt: skip
    recipe = tuple(dataclasses.replace(a, placed={}, seen=(), skips=[]) for a in applications)
    modes = {name: part.training for name, part in module.named_modules()}
    base, tensors = original_tree(module), _held(module)
    _hold(base, {name: tensors[name] for name in _held(base)})  # shared memory lasts as long as who made it
    return restored, (rewrite, base, source.example, source.as_eager, recipe, tensors, modes)


def restored(
    rewrite: Rewrite, base: nn.Module, example: Example, as_eager: bool, recipe: Sequence[Application],
    tensors: dict[str, torch.Tensor | None], modes: dict[str, bool],
) -> Any:  # fmt: skip
    """The model that :func:`reduced` took apart.

    Raises:
        SaveError: if the adds found, or the names of the new tensors, are not those it was pickled with.
    """
    source = source_of(base, *example)
    source.as_eager = as_eager
    applications = [a.copy() for a in recipe]
    with outside_inference_mode(), torch.random.fork_rng(devices=[]):  # starts are drawn, and then not used
        new = rewrite(source, base, applications, example)
    places = [[place.name for place in a.claimed or ()] for a in applications]
    if places != [[place.name for place in a.claimed or ()] for a in recipe] or _held(new).keys() != tensors.keys():
        raise SaveError(
            f"cannot read the pickle of a rewritten {type(base).__name__}",
            "its residual adds or its new tensors are not those it was pickled with",
            "use the versions of torch and of the model's library it was pickled with, or resfx.save and resfx.load",
        )
    _hold(new, tensors)
    for name, part in new.named_modules():
        part.training = modes[name]
    return new


def _held(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Every parameter and buffer by name, under each of its names."""
    return {
        f"{name}.{leaf}" if name else leaf: tensor
        for name, part in module.named_modules()
        for leaf, tensor in (*held_parameters(part).items(), *held_buffers(part).items())
    }


def _hold(module: nn.Module, tensors: dict[str, torch.Tensor | None]) -> None:
    """Put tensors in the place of those of the same names."""
    parts = dict(module.named_modules())
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        part = parts[owner]
        held: dict[str, Any] = (held_parameters if leaf in held_parameters(part) else held_buffers)(part)
        held[leaf] = tensor
