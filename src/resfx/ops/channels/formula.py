"""Operators on a wide state ``(..., n, d)`` that keep their operands for the backward pass, and nothing else.

Each is a plain formula, and the same formula with its gradients in closed form: what lies between operands and result
(differences of channels, conversions of half types, products) is computed again, one pass of elementwise work, where
autograd would keep a copy of the state for each. Reductions run in float32 for half types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resfx._torch import is_exporting, transforming
from resfx.ops.register import accumulator, at_kernels, fused, keeps_one_node, one_node


def spread(x: Tensor, channels: int) -> Tensor:
    """``x (..., d)`` as equal channels ``(..., n, d)``: a view, no copy."""
    return spread_formula(x, channels) if _is_open() else _Spread.apply(x, channels)


def spread_formula(x: Tensor, channels: int) -> Tensor:
    """:func:`spread`, whose gradient torch sums in an order of its own."""
    return x.unsqueeze(-2).expand(*x.shape[:-1], channels, x.shape[-1])


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, channels: int) -> Tensor:
        return spread_formula(x, channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return total(grad.to(accumulator(grad.dtype)).unbind(-2)).to(grad.dtype), None


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
        given = unit if isinstance(unit, Tensor) or unit in (None, 1) else weights.new_tensor(unit)
        return _combine_node(state, weights, given if isinstance(given, Tensor) else None, unit is not None)
    if _is_open():
        return combine_formula(state, weights, unit)
    if at_kernels(state) and weights.shape[-1] == 1:
        excess = None if unit is None else total(weights.unbind(-2)) - unit
        return _wide_combine(state, weights, excess)
    return _Combine.apply(state, weights, unit)


def combine_formula(state: Tensor, weights: Tensor, unit: Tensor | float | None) -> Tensor:
    """:func:`combine` step by step."""
    return _combine_beyond(state, weights, None if unit is None else total(weights.unbind(-2)) - unit)


def _combine_beyond(state: Tensor, weights: Tensor, excess: Tensor | None) -> Tensor:
    """With what the weights sum to beyond their unit."""
    channels, parts = state.to(accumulator(state.dtype)).unbind(-2), weights.unbind(-2)
    if excess is None:
        return weighted_sum(parts, channels).to(state.dtype)
    first = channels[0]
    out = torch.addcmul(first, excess, first)
    for weight, channel in zip(parts[1:], channels[1:], strict=True):
        out = torch.addcmul(out, weight, channel - first)
    return out.to(state.dtype)


class _Combine(torch.autograd.Function):
    """A channel's gradient is its weight times the result's: exact where weights are powers of two."""

    @staticmethod
    def forward(state: Tensor, weights: Tensor, unit: Tensor | float | None) -> Tensor:
        return combine_formula(state, weights, unit)

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
        return _mix_node(state, f, write, matrix, unit)
    if _is_open():
        return mix_formula(state, f, write, matrix, unit)
    return _wide_mix(state, f, write, matrix, unit)


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
            base = weighted_sum(columns, channels)
    return torch.addcmul(base, write.unsqueeze(-1), f.to(base.dtype).unsqueeze(-2)).to(state.dtype)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(state: Tensor, f: Tensor, write: Tensor, matrix: Tensor | None, unit: bool) -> Tensor:
        return mix_formula(state, f, write, matrix, unit)

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
            gstate = weighted_sum(matrix.unsqueeze(-1).unbind(-3), [r.unsqueeze(-2) for r in rows]).to(state.dtype)
            if needs[3]:
                x = state.to(wide)
                x = x - x[..., :1, :] if ctx.unit else x
                # A product of matrices would run in half precision under autocast.
                parts = [(x * r.unsqueeze(-2)).sum(-1) for r in rows]
                gmatrix = torch.stack(parts, -2).sum_to_size(matrix.shape)
        gf = total((write.unsqueeze(-1) * g).unbind(-2)).to(f.dtype) if needs[1] else None
        gwrite = (g * f.to(wide).unsqueeze(-2)).sum(-1).sum_to_size(write.shape) if needs[2] else None
        return gstate, gf, gwrite, gmatrix, None


def delta_write(
    state: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, eps2: float, add: bool, erase: bool
) -> Tensor:
    """The delta shortcut of :mod:`resfx.ops.delta.formula` on every channel, with one gate and one direction.

    Args:
        state: ``(..., n, d)``.
        f: branch output, the direction, ``(..., d)``.
        beta: gate, ``(..., 1)``.
        v: targets, ``(..., n)``.
        mix: interpolation, ``()`` or ``(d,)``; see :func:`resfx.ops.delta.formula.delta_shortcut`, as for ``add``.
        eps2: added to the squared norm of ``f``.
        erase: whether what the state holds along ``f`` is taken off.
    """
    if keeps_one_node():
        return _delta_node(state, f, beta, v, mix, eps2, add, erase)
    if _is_open():
        return delta_write_formula(state, f, beta, v, mix, eps2, add, erase)
    return _wide_delta(state, f, beta, v, mix, eps2, add, erase)


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
    return torch.addcmul(xw + fw if add else xw, weight, fw).to(state.dtype)


class _DeltaWrite(torch.autograd.Function):
    @staticmethod
    def forward(
        state: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, eps2: float, add: bool, erase: bool
    ) -> Tensor:
        return delta_write_formula(state, f, beta, v, mix, eps2, add, erase)

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


def inverse_deviation(x: Tensor, eps: float, centre: bool) -> Tensor:
    """``1 / sqrt(var(x) + eps)`` over the last axis, ``(..., 1)``; around zero unless ``centre``."""
    if _is_open():
        return deviation_formula(x, eps, centre)
    return _InverseDeviation.apply(x, eps, centre)


def deviation_formula(x: Tensor, eps: float, centre: bool) -> Tensor:
    """:func:`inverse_deviation` step by step."""
    wide = x.to(accumulator(x.dtype))
    square = wide.var(-1, correction=0, keepdim=True) if centre else wide.square().mean(-1, keepdim=True)
    return torch.rsqrt(square + eps)


class _InverseDeviation(torch.autograd.Function):
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


def weighted_sum(weights: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
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


def _is_open() -> bool:
    """Whether to write the plain formula into the graph: transforms see through it, and exporters know it."""
    return transforming() or is_exporting()


_wide_combine = fused("wide_combine", _combine_beyond, kernels="channels.triton_combine")
_wide_mix = fused("wide_mix", mix_formula, open_form=_Mix.apply, kernels="channels.triton_mix")
_wide_delta = fused("wide_delta", delta_write_formula, open_form=_DeltaWrite.apply, kernels="channels.triton_delta")


def _combine_given(state: Tensor, weights: Tensor, unit: Tensor | None, centred: bool) -> Tensor:
    return combine_formula(state, weights, (1.0 if unit is None else unit) if centred else None)


_combine_node = one_node(
    "combine_channels", _combine_given, lambda state, *_: state.new_empty(*state.shape[:-2], state.shape[-1])
)
_mix_node = one_node("mix_channels", mix_formula, lambda state, *_: state.new_empty(state.shape))
_delta_node = one_node("delta_write", delta_write_formula, lambda state, *_: state.new_empty(state.shape))
