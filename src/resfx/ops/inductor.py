"""What is written for Inductor alone: the same numbers, in a form that it compiles to fewer passes over memory.

In eager mode, exported, under ``torch.func`` and on a GPU each of these is what its name says and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resfx._torch import is_exporting

from .register import accumulator, transforming


def per_row(x: Tensor, seen: Tensor) -> Tensor:
    """``x``, numbers per row, for a loop over rows that Inductor compiles for a CPU: the same numbers, bit for bit.

    Numbers that are used more than once, or kept for the backward pass, Inductor computes in a loop of their own, along
    the rows and vectorised. What comes before and behind can then not be one loop over rows, and each pass over the
    elements reads its tensors from memory again. It vectorises no loop with 16-bit integers in it, and then joins all
    the loops: hence this factor of one. Its exponential sees to it that the numbers are computed once per row, never
    again for every element (which would not be vectorised either).

    Args:
        seen: numbers that ``x`` was computed from, in the same shape.
    """
    return x * torch.exp(seen.isnan().to(torch.int16).to(x.dtype)) if _for_inductor(x) else x


def column_sum(x: Tensor, share: Tensor | None = None) -> Tensor:
    """Sum of all rows ``(..., d)``, each times its number ``(..., 1)`` where there are any: ``(d,)``.

    The loop that Inductor writes for it on a CPU walks down the columns, a row's length at every step, and takes three
    times as long as a matrix product.
    """
    rows = x.flatten(0, -2)
    if not _for_inductor(x):
        return (rows if share is None else rows * share.flatten(0, -2)).sum(0)
    with torch.autocast("cpu", enabled=False):
        return ((rows.new_ones(1, rows.shape[0]) if share is None else share.flatten()[None]) @ rows)[0]


def stored(x: Tensor) -> Tensor:
    """``x``, contiguous. Compiled for a CPU it lies in memory before it is read, where Inductor would put the way to
    its elements into the loop that reads them."""
    return _Stored.apply(x) if _for_inductor(x) and not transforming() else x.contiguous()


class _Stored(torch.autograd.Function):
    """Inductor stores what is viewed by strides."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        own = x.clone(memory_format=torch.contiguous_format)
        return own.as_strided(own.shape, own.stride())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _for_inductor(x: Tensor) -> bool:
    """Whether this is traced for code that Inductor writes for a CPU."""
    return torch.compiler.is_dynamo_compiling() and x.device.type == "cpu" and not is_exporting()


def row_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``weight . x`` for every row ``(..., d)``, and the bias: a linear map to one number per row, ``(..., 1)``.

    Compiled it runs in float32 for half types. Forward it is a sum over the row: part of the loop over rows of what
    gave the row and what uses the number, which a matrix product is not. Backward it is the other way round: a sum over
    all rows is best left to a matrix product.

    Args:
        x: ``(..., d)``.
        weight: ``(1, d)``.
        bias: ``(1,)``.
    """
    if not torch.compiler.is_dynamo_compiling() or is_exporting():
        return torch.nn.functional.linear(x, weight, bias)
    wide = accumulator(x.dtype)
    product = _RowProduct.apply if x.dtype == wide and not transforming() else _row_product
    out = product(x.to(wide), weight[0].to(wide))
    return out if bias is None else out + bias.to(wide)


def _row_product(x: Tensor, w: Tensor) -> Tensor:
    return (x * w).sum(-1, keepdim=True)


class _RowProduct(torch.autograd.Function):
    """``x . w`` for every row."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return _row_product(x, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad * w, column_sum(x, grad)
