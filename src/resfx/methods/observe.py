"""What a method's module tells of itself while it runs: the quantities that :func:`resfx.probe` gathers.

A module that has something to tell has a method ``observe``, called with what ``forward`` is called with, under
``torch.no_grad()``. It returns :data:`Observations`: plain mathematics, no hook and no graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from resfx.ops.register import accumulator


class Observed(NamedTuple):
    """One quantity of one module in one call.

    Attributes:
        values: ``(*rows, *axes)``; the rows are those of the stream, mostly ``(batch, tokens)``, and there are none
            where the quantity does not depend on the input.
        axes: names of the axes behind the rows. Two have a meaning: ``"source"`` are the sources of a read over depth,
            lined up over reads by their number; ``("from", "to")`` is a matrix that acts on the channels of a stream,
            and those of consecutive adds are multiplied.
        first: what the first place of the last axis is called: 0, or a negative distance.
    """

    values: Tensor
    axes: tuple[str, ...] = ()
    first: int = 0


Observations = dict[str, Observed]


def entropy(weights: Tensor) -> Tensor:
    """``-sum_j a_j ln a_j`` over the last axis, in nats: 0 for one source, ``ln n`` for all alike."""
    weights = weights.to(accumulator(weights.dtype))
    return torch.special.entr(weights).sum(-1)


def attention_map(weights: Tensor, *axes: str) -> Observations:
    """Weights ``(*rows, *axes, sources)`` that sum to one over the sources, and their entropy."""
    return {"weights": Observed(weights, (*axes, "source")), "entropy": Observed(entropy(weights), axes)}


def apart(state: Tensor) -> Tensor:
    """How far the channels of a state ``(..., n, d)`` differ: the root of the mean ``|X_j - X|^2``, over ``|X|``, where
    ``X`` is their mean; ``(...)``, 0 where all are equal."""
    state = state.to(accumulator(state.dtype))
    mean = state.mean(-2, keepdim=True)
    spread = (state - mean).square().sum(-1).mean(-1).sqrt()
    return spread / mean.square().sum((-2, -1)).sqrt().clamp_min(torch.finfo(state.dtype).tiny)
