"""Channels to one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resfx.ops.closed import Closed
from resfx.ops.register import accumulator, at_kernels, fused, in_type, keeps_one_node, one_node

from .rows import is_open, total, weigh


def combine(state: Tensor, weights: Tensor, unit: Tensor | float | None = 1.0) -> Tensor:
    """Channels to one vector: ``sum_j w_j X_j``.

    Args:
        state: ``(..., n, d)``.
        weights: ``(..., n, 1)`` or ``(n, 1)``, one per channel, or ``(n, d)``, one per feature.
        unit: what the weights sum to, to rounding, where they average. The sum is then taken as the first channel
            and differences from it, so that equal channels give themselves, bit for bit. ``None``: a plain sum.

    Returns:
        ``(..., d)`` in the type of ``state``.
    """
    if keeps_one_node():
        return _node(*_of_node(state, weights, unit))
    if is_open():
        return combine_formula(state, weights, unit)
    if at_kernels(state) and weights.shape[-1] == 1:
        excess = None if unit is None else total(weights.unbind(-2)) - unit
        return _operator(state, weights, excess)
    return _Combine.call(state, weights, unit)


def combine_formula(state: Tensor, weights: Tensor, unit: Tensor | float | None) -> Tensor:
    """:func:`combine` step by step."""
    return combine_beyond(state, weights, None if unit is None else total(weights.unbind(-2)) - unit)


def combine_beyond(state: Tensor, weights: Tensor, excess: Tensor | None) -> Tensor:
    """With what the weights sum to beyond their unit."""
    channels, parts = state.to(accumulator(state.dtype)).unbind(-2), weights.unbind(-2)
    if excess is None:
        return in_type(weigh(parts, channels), state.dtype)
    first = channels[0]
    out = torch.addcmul(first, excess, first)
    for weight, channel in zip(parts[1:], channels[1:], strict=True):
        out = torch.addcmul(out, weight, channel - first)
    return in_type(out, state.dtype)


class _Combine(Closed):
    """A channel's gradient is its weight times the result's: exact where weights are powers of two."""

    @staticmethod
    def forward(state: Tensor, weights: Tensor, unit: Tensor | float | None) -> Tensor:
        done = _node.native(*_of_node(state, weights, unit))
        return combine_formula(state, weights, unit) if done is None else done

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, weights = ctx.saved_tensors
        g = grad.to(accumulator(state.dtype)).unsqueeze(-2)
        gstate = (weights * g).to(state.dtype) if ctx.needs_input_grad[0] else None
        gweights = (state.to(g.dtype) * g).sum_to_size(weights.shape) if ctx.needs_input_grad[1] else None
        return gstate, gweights, None


def _of_node(state: Tensor, weights: Tensor, unit: Tensor | float | None) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """What the operator's node is given: a tensor for every number but one."""
    known = isinstance(unit, Tensor) or unit in (None, 1)
    given = unit if known else weights.new_tensor(unit)
    return state, weights, given if isinstance(given, Tensor) else None, unit is not None


def _combine_given(state: Tensor, weights: Tensor, unit: Tensor | None, centred: bool) -> Tensor:
    return combine_formula(state, weights, (1.0 if unit is None else unit) if centred else None)


_operator = fused("wide_combine", combine_beyond, kernels="channels.triton_combine")
_node = one_node(
    "combine_channels", _combine_given, lambda state, *_: state.new_empty(*state.shape[:-2], state.shape[-1])
)
