"""The delta shortcut on every channel of a wide state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resfx.ops.closed import Closed
from resfx.ops.register import accumulator, fused, in_type, keeps_one_node, one_node

from .rows import is_open, total


def delta_write(
    state: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, eps2: float, add: bool, erase: bool
) -> Tensor:
    """The delta shortcut of :mod:`resfx.ops.delta.formula` on every channel, with one gate and one direction.

    Args:
        state: ``(..., n, d)``.
        f: branch output, the direction, ``(..., d)``.
        beta: gate, ``(..., 1)``.
        v: targets, ``(..., n)``.
        mix: interpolation, one number or ``(d,)``; see :func:`resfx.ops.delta.formula.delta_shortcut`, as for ``add``.
        eps2: added to the squared norm of ``f``.
        erase: whether what the state holds along ``f`` is taken off.
    """
    if keeps_one_node():
        return _node(state, f, beta, v, mix, eps2, add, erase)
    if is_open():
        return delta_write_formula(state, f, beta, v, mix, eps2, add, erase)
    return _operator(state, f, beta, v, mix, eps2, add, erase)


def delta_write_formula(
    state: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, eps2: float, add: bool, erase: bool
) -> Tensor:
    """:func:`delta_write` step by step."""
    wide = accumulator(state.dtype)
    xw, fw = state.to(wide), f.to(wide).unsqueeze(-2)
    scale = torch.rsqrt((fw * fw).sum(-1, keepdim=True) + eps2)
    change = v.to(wide).unsqueeze(-1)
    if erase:
        change = change - (fw * xw).sum(-1, keepdim=True) * scale
    weight = beta.to(wide).unsqueeze(-1) * change * scale
    if mix is not None:
        weight = mix.to(wide) * (weight - 1)
    return in_type(torch.addcmul(xw + fw if add else xw, weight, fw), state.dtype)


class _DeltaWrite(Closed):
    @staticmethod
    def forward(
        state: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, eps2: float, add: bool, erase: bool
    ) -> Tensor:
        done = _node.native(state, f, beta, v, mix, eps2, add, erase)
        return delta_write_formula(state, f, beta, v, mix, eps2, add, erase) if done is None else done

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.eps2, ctx.add, ctx.erase = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, f, beta, v, mix = ctx.saved_tensors
        wide = accumulator(state.dtype)
        g, x, fw = grad.to(wide), state.to(wide), f.to(wide).unsqueeze(-2)
        b, target = beta.to(wide).unsqueeze(-1), v.to(wide).unsqueeze(-1)
        scale = torch.rsqrt((fw * fw).sum(-1, keepdim=True) + ctx.eps2)
        p = (fw * x).sum(-1, keepdim=True) if ctx.erase else torch.zeros_like(target)
        change = target - p * scale
        weight, along, gmix = b * change * scale, g * fw, None
        if mix is not None:
            m, weight = mix.to(wide), weight - 1
            gmix = (along * weight).sum_to_size(mix.shape).to(mix.dtype)
            along, weight = m * along, m * weight
        a = along.sum(-1, keepdim=True)  # for the weight before interpolation
        gbeta, gv = total((a * change * scale).unbind(-2)), (a * b * scale).squeeze(-1)
        gscale = total((a * b * (change - p * scale)).unbind(-2)).unsqueeze(-2)
        gf = torch.addcmul(g, weight, g) if ctx.add else weight * g
        gstate = g
        if ctx.erase:
            across = -a * b * scale * scale  # for f . x
            gstate, gf = torch.addcmul(g, across, fw), torch.addcmul(gf, across, x)
        gf = total(gf.unbind(-2)) - (gscale * scale**3 * fw).squeeze(-2)
        return (gstate.to(state.dtype), gf.to(f.dtype), gbeta.to(beta.dtype), gv.to(v.dtype), gmix, None, None, None)


_operator = fused("wide_delta", delta_write_formula, open_form=_DeltaWrite.call, kernels="channels.triton_delta")
_node = one_node("delta_write", delta_write_formula, lambda state, *_: state.new_empty(state.shape))
