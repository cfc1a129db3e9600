"""A new state from channels that mix and one vector that is written to all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resfx.ops.closed import Closed
from resfx.ops.register import accumulator, fused, in_type, keeps_one_node, one_node

from .rows import is_open, total, weigh


def mix(state: Tensor, f: Tensor, write: Tensor, matrix: Tensor | None, unit: bool) -> Tensor:
    """A new state ``M X + w f``: channels mixed, and one vector written to all.

    Args:
        state: ``(..., n, d)``.
        f: ``(..., d)``.
        write: ``(..., n)``.
        matrix: ``(..., n, n)``, row: to, column: from; ``None`` leaves the channels as they are.
        unit: whether the rows of ``matrix`` sum to one but for rounding: equal channels then stay equal, bit for bit.
            The gradient for ``matrix`` lacks a number per row, which no change that keeps the rows' sums can see.

    Returns:
        ``(..., n, d)`` in the type of ``state``.
    """
    if keeps_one_node():
        return _node(state, f, write, matrix, unit)
    if matrix is not None and (done := _node.native(state, f, write, matrix, unit)) is not None:
        return done
    if is_open():
        return mix_formula(state, f, write, matrix, unit)
    return _operator(state, f, write, matrix, unit)


def mix_formula(state: Tensor, f: Tensor, write: Tensor, matrix: Tensor | None, unit: bool) -> Tensor:
    """:func:`mix` step by step."""
    base = state.to(accumulator(state.dtype))
    if matrix is not None:
        first, *others = channels = base.unsqueeze(-3).unbind(-2)
        columns = matrix.unsqueeze(-1).unbind(-2)
        if unit:
            base = first
            for column, other in zip(columns[1:], others, strict=True):
                base = torch.addcmul(base, column, other - first)
        else:
            base = weigh(columns, channels)
    out = torch.addcmul(base, write.unsqueeze(-1), f.to(base.dtype).unsqueeze(-2))
    return in_type(out, state.dtype)


class _Mix(Closed):
    @staticmethod
    def forward(state: Tensor, f: Tensor, write: Tensor, matrix: Tensor | None, unit: bool) -> Tensor:
        done = None if matrix is None else _node.native(state, f, write, matrix, unit)  # else one operator
        return mix_formula(state, f, write, matrix, unit) if done is None else done

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.unit = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, f, write, matrix = ctx.saved_tensors
        needs, wide = ctx.needs_input_grad, accumulator(state.dtype)
        g = grad.to(wide)
        gstate, gmatrix = grad, None
        if matrix is not None:
            rows = g.unbind(-2)
            gstate = weigh(matrix.unsqueeze(-1).unbind(-3), [r.unsqueeze(-2) for r in rows]).to(state.dtype)
            if needs[3]:
                x = state.to(wide)
                x = x - x[..., :1, :] if ctx.unit else x
                # A product of matrices would run in half precision under autocast.
                parts = [(x * r.unsqueeze(-2)).sum(-1) for r in rows]
                gmatrix = torch.stack(parts, -2).sum_to_size(matrix.shape)
        gf = total((write.unsqueeze(-1) * g).unbind(-2)).to(f.dtype) if needs[1] else None
        gwrite = (g * f.to(wide).unsqueeze(-2)).sum(-1).sum_to_size(write.shape) if needs[2] else None
        return gstate, gf, gwrite, gmatrix, None


_operator = fused("wide_mix", mix_formula, open_form=_Mix.call, kernels="channels.triton_mix")
_node = one_node("mix_channels", mix_formula, lambda state, *_: state.new_empty(state.shape))
