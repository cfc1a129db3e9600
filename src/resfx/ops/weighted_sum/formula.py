"""A weighted sum over a list of sources: what learned aggregation over depth comes down to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resfx.ops.chunks import chunked_sums, is_cut, is_stacked
from resfx.ops.native import Native
from resfx.ops.register import accumulator, fused, in_type


def weighted_sum(sources: Sequence[Tensor], weights: Tensor, base: Tensor | None = None) -> Tensor:
    """``base + sum_j weights[..., j] sources[j]``, accumulated in float32 for half types.

    Args:
        sources: ``n`` tensors ``(..., d)``.
        weights: ``(n,)``, or ``(..., n)`` for weights of each token's own.
        base: ``(..., d)``; kept bit for bit where every weight is zero.
    """
    return _operator(list(sources), weights, base)


def weighted_sums(sources: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """:func:`weighted_sum` for weights ``(m, n)`` or ``(..., m, n)``: ``m`` tensors."""
    if is_cut(sources):
        totals = chunked_sums(sources, weights.to(accumulator(sources[0].dtype)), None)
        return [total.to(sources[0].dtype) for total in totals]
    return [weighted_sum(sources, row) for row in weights.unbind(-2)]


def weighted_sum_formula(sources: Sequence[Tensor], weights: Tensor, base: Tensor | None) -> Tensor:
    """:func:`weighted_sum` step by step."""
    dtype = sources[0].dtype if base is None else base.dtype
    wide = accumulator(dtype)
    weights = weights.to(wide)
    if is_cut(sources):
        return chunked_sums(sources, weights.unsqueeze(-2), base)[0].to(dtype)
    if is_stacked(sources):
        return stacked_sum(in_type(torch.stack(list(sources), -2), wide), weights, base, dtype)
    total = weights[..., 0, None] * sources[0].to(wide)
    for j in range(1, len(sources)):
        total = total + weights[..., j, None] * sources[j].to(wide)
    total = total.to(dtype)
    return total if base is None else base + total


def stacked_sum(stacked: Tensor, weights: Tensor, base: Tensor | None, dtype: torch.dtype) -> Tensor:
    """:func:`weighted_sum` of sources ``(..., n, d)``, in a type. No product of matrices: it may round."""
    total = in_type((weights.unsqueeze(-1) * stacked).sum(-2), dtype)
    return total if base is None else base + total


_native = Native("weighted_sum")
_operator = fused("weighted_sum", weighted_sum_formula, node=_native)
