"""What the stages of one process keep of each micro-batch for its later stages, and the gradients on their way back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from resfx.runtime.units import outside_of_compilers

Tensors = tuple[torch.Tensor, ...]

_eagerly = functools.partial(
    outside_of_compilers, why="resfx: what a process keeps of a stage lies outside of its graph"
)


class Store:
    """One for all stages of a process.

    A kept value is a leaf: the later stages that read it, whose backward passes come first, add up its gradient there;
    the backward pass of the stage that kept it takes it from there, beside what comes back over the wire.

    Attributes:
        microbatch: which one the stages are called for; None where only types and sizes are asked for.
    """

    def __init__(self) -> None:
        self.microbatch: int | None = None
        self._kept: dict[tuple[int | None, str], torch.Tensor] = {}

    @_eagerly
    def keep(self, names: Sequence[str], values: Tensors, given: Tensors) -> Tensors:
        """Keep values; what the stage gives, with their gradients behind it."""
        leaves = [value.detach().requires_grad_(value.requires_grad) for value in values]
        for name, leaf in zip(names, leaves, strict=True):
            self._kept[self.microbatch, name] = leaf
        return _Joined.apply(leaves, *values, *given)

    @_eagerly
    def recall(self, names: Sequence[str], drops: Sequence[str]) -> Tensors:
        """What earlier stages have kept; those that no later stage reads are let go."""
        found = tuple(self._kept[self.microbatch, name] for name in names)
        for name in drops:
            del self._kept[self.microbatch, name]
        return found


class _Joined(torch.autograd.Function):
    """Gives what a stage gives, unchanged; backward, kept values get what was added up at their leaves."""

    @staticmethod
    def forward(ctx: Any, leaves: list[torch.Tensor], *tensors: torch.Tensor) -> Tensors:
        ctx.leaves = leaves
        ctx.set_materialize_grads(False)
        return tensors[len(leaves) :]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        kept = [None if not leaf.requires_grad else torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                for leaf in ctx.leaves]  # fmt: skip
        return None, *kept, *gradients
