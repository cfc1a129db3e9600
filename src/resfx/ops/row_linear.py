"""A linear map to one number per row, for ``torch.compile``.

Forward it is a sum over the row: part of the loop over rows of what gave the row and what uses the number, which a
matrix product is not. Backward it is the other way round: a sum over all rows is best left to a matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from resfx._torch import is_exporting, transforming

from .register import accumulator, column_sum


class RowLinear(nn.Linear):
    """A linear map to one number per row, ``(..., d)`` to ``(..., 1)``. Compiled, in float32 for half types.

    Parameters are those of ``nn.Linear(d, 1)``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_dynamo_compiling() or is_exporting():
            return super().forward(x)
        wide = accumulator(x.dtype)
        product = _RowProduct.apply if x.dtype == wide and not transforming() else _row_product
        out = product(x.to(wide), self.weight[0].to(wide))
        return out if self.bias is None else out + self.bias.to(wide)


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
