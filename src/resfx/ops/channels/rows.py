"""What the operators on a wide state share, and two small ones: equal channels, and how far a row is spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resfx._torch import is_exporting
from resfx.ops.closed import Closed
from resfx.ops.register import accumulator, transforming


def spread(x: Tensor, channels: int) -> Tensor:
    """``x (..., d)`` as equal channels ``(..., n, d)``: a view, no copy."""
    return spread_formula(x, channels) if is_open() else _Spread.call(x, channels)


def spread_formula(x: Tensor, channels: int) -> Tensor:
    """:func:`spread`, whose gradient torch sums in an order of its own."""
    return x.unsqueeze(-2).expand(*x.shape[:-1], channels, x.shape[-1])


class _Spread(Closed):
    @staticmethod
    def forward(x: Tensor, channels: int) -> Tensor:
        return spread_formula(x, channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return total(grad.to(accumulator(grad.dtype)).unbind(-2)).to(grad.dtype), None


def inverse_deviation(x: Tensor, eps: float, centre: bool) -> Tensor:
    """``1 / sqrt(var(x) + eps)`` over the last axis, ``(..., 1)``; around zero unless ``centre``."""
    if is_open():
        return deviation_formula(x, eps, centre)
    return _InverseDeviation.call(x, eps, centre)


def deviation_formula(x: Tensor, eps: float, centre: bool) -> Tensor:
    """:func:`inverse_deviation` step by step."""
    wide = x.to(accumulator(x.dtype))
    square = wide.var(-1, correction=0, keepdim=True) if centre else wide.square().mean(-1, keepdim=True)
    return torch.rsqrt(square + eps)


class _InverseDeviation(Closed):
    @staticmethod
    def forward(x: Tensor, eps: float, centre: bool) -> Tensor:
        return deviation_formula(x, eps, centre)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.eps, ctx.centre = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        wide = x.to(grad.dtype)
        scale = deviation_formula(x, ctx.eps, ctx.centre)
        away = wide - wide.mean(-1, keepdim=True) if ctx.centre else wide
        return (grad * (-(scale**3) / x.shape[-1]) * away).to(x.dtype), None, None


def weigh(weights: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
    """Sum of ``weights[j] (..., 1)`` times ``channels[j] (..., d)``, one pass per channel."""
    out = weights[0] * channels[0]
    for weight, channel in zip(weights[1:], channels[1:], strict=True):
        out = torch.addcmul(out, weight, channel)
    return out


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum in pairs: exact for a power of two of equal terms."""
    if len(terms) == 1:
        return terms[0]
    pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
    return total([*pairs, terms[-1]] if len(terms) % 2 else pairs)


def is_open() -> bool:
    """Whether to write the plain formula into the graph: transforms see through it, and exporters know it."""
    return transforming() or is_exporting()
