"""The delta shortcut, the operator of Deep Delta Learning (arXiv 2601.00417, section 2.1).

With ``k = f / sqrt(|f|^2 + eps2)`` and ``p = k . x`` the published form is ``x + beta (v - p) k``, a rank-one
update whose matrix ``I - beta k k^T`` has eigenvalues ``1`` and ``1 - beta``. Since ``k`` is a multiple of ``f``,
every form is the shortcut plus a number per row times ``f``: that is how it is computed here, in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resfx._torch import is_compiling, is_exporting
from resfx.ops.closed import Closed
from resfx.ops.inductor import per_row
from resfx.ops.native import Native
from resfx.ops.register import accumulator, fused, in_type, transforming


def delta_formula(
    x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
) -> Tensor:
    """:func:`delta_shortcut` step by step: what every other form is held against."""
    wide = accumulator(x.dtype)
    xw, fw = x.to(wide), f.to(wide)
    squares = (fw * fw).sum(-1, keepdim=True)
    scale = torch.rsqrt(squares + eps2)
    p = (fw * xw).sum(-1, keepdim=True) * scale
    weight = beta.to(wide) * (v.to(wide) - p) * scale
    if mix is not None:
        weight = mix.to(wide) * (weight - 1)
    if mix is None or mix.numel() == 1:
        weight = per_row(weight, squares)
    if add:
        base = x + f if total is None else total
    else:
        base = x
    return base + (weight * fw).to(base.dtype)


def delta_shortcut(
    x: Tensor,
    f: Tensor,
    beta: Tensor,
    v: Tensor,
    mix: Tensor | None = None,
    total: Tensor | None = None,
    *,
    eps2: float = 1e-10,
    add: bool = True,
) -> Tensor:
    """The delta shortcut in one of three forms.

    ======================  ==========================================  ==========================================
    ``mix``, ``add``        result                                      use
    ======================  ==========================================  ==========================================
    ``None``, ``False``     ``x + beta (v - p) k``                      published
    tensor,   ``True``      ``x + f + mix (beta (v - p) k - f)``        ``mix=0`` is a plain add, 1 is published
    ``None``, ``True``      ``x + f + beta (v - p) k``                  ``beta=0`` is a plain add (erase gate)
    ======================  ==========================================  ==========================================

    Args:
        x: stream, ``(..., d)``.
        f: branch output, the direction of the update, ``(..., d)``.
        beta: gate, ``(..., 1)``.
        v: target read-out, ``(..., 1)``.
        mix: interpolation, one number, ``()`` or ``(1,)``, or ``(d,)``.
        total: ``x + f`` as the host computes it (``torch.add`` with ``alpha`` rounds once, not twice); without
            ``add`` it is not read.
        eps2: added to the squared norm of ``f``.
        add: whether the plain sum is the base.

    Returns:
        The new stream, ``(..., d)``, in the type of ``x``; reductions run in float32 for half types.
    """
    return _operator(x, f, beta, v, mix, total, eps2, add)


def canonical(x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None) -> bool:
    """Whether no operand is broadcast or promoted but as :func:`delta_shortcut` says."""
    same = x.shape == f.shape and x.dtype == f.dtype
    gates = beta.shape == v.shape == (*x.shape[:-1], 1)
    mixed = mix is None or mix.ndim == 0 or mix.shape in ((1,), x.shape[-1:])
    return same and gates and mixed and (total is None or (total.shape == x.shape and total.dtype == x.dtype))


def delta_eager(
    x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
) -> Tensor:
    """:func:`delta_formula` in fewer operators and passes over memory, for eager mode; nothing may record gradients.

    The last sum rounds once, not twice. Numbers of Python are few: each takes longer than a small operator.
    """
    wide = accumulator(x.dtype)
    fw, xw = in_type(f, wide), in_type(x, wide)
    scale = torch.linalg.vector_norm(fw, dim=-1, keepdim=True).square_().add_(eps2).rsqrt_()
    p = (fw * xw).sum(-1, keepdim=True)
    weight = torch.addcmul(in_type(v, wide), p, scale, value=-1).mul_(scale).mul_(beta)
    if mix is not None:
        mixed = in_type(mix, wide)
        weight = torch.addcmul(-mixed, mixed, weight)
    if add and total is None:
        return (x + f).addcmul_(weight, fw)
    return in_type(torch.addcmul(in_type(total if add else x, wide), weight, fw), x.dtype)  # type: ignore[arg-type]


def delta_gradients(
    grad: Tensor, x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: bool, eps2: float, add: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of :func:`delta_formula` for ``x, f, beta, v, mix``, in closed form.

    For Inductor: the sums over a row are computed again, not saved, and are written otherwise than in the formula so
    that the two are not merged (a saved number per row is a loop of its own); every number per row that is returned
    is a sum over the row, for the same reason. For half types, whose conversions cost more than a loop, it is not.
    """
    compiling = is_compiling()
    wide = accumulator(x.dtype)
    reduce = compiling and x.dtype == wide
    g, xw, fw, b = grad.to(wide), x.to(wide), f.to(wide), beta.to(wide)
    if compiling or torch.is_grad_enabled():  # the norm has no second derivative at zero
        squares = fw.square().sum(-1, keepdim=True)
    else:
        squares = torch.linalg.vector_norm(fw, dim=-1, keepdim=True).square()
    scale = torch.rsqrt(squares + eps2)
    p = (xw * fw).sum(-1, keepdim=True) * scale
    error = per_row(v.to(wide) - p, squares)
    weight, gf = b * error * scale, g * fw
    gmix = None
    if mix is not None:
        weight, m = weight - 1, mix.to(wide)
    one = mix is not None and mix.numel() == 1
    if mix is None or (one and not reduce):
        a = gf.sum(-1, keepdim=True)
        if mix is not None:
            gmix, a, weight = (a * weight).sum(), m * a, m * weight
    else:
        gmix = (gf * weight).sum(-1).sum() if one else (gf * weight).sum_to_size(mix.shape)
        weight, gf = m * weight, m * gf
        a = gf.sum(-1, keepdim=True)
    across = -a * b * scale * scale  # for f . x
    along = across * (error - p) * scale  # for |f|^2, twice
    if reduce:
        gbeta, gv = (gf * (error * scale)).sum(-1, keepdim=True), (gf * (b * scale)).sum(-1, keepdim=True)
    else:
        gbeta, gv = a * error * scale, a * b * scale
    plain = add and not total
    gx = across * fw if add and total else torch.addcmul(g, across, fw)
    gf = torch.addcmul(g, weight, g) if plain else weight * g
    gf = torch.addcmul(torch.addcmul(gf, across, xw), along, fw)
    gmix = None if mix is None or gmix is None else gmix.to(mix.dtype).view(mix.shape)
    return gx.to(x.dtype), gf.to(f.dtype), gbeta.to(beta.dtype), gv.to(v.dtype), gmix


class _Delta(Closed):
    """The formula with its gradients in closed form; plain torch, so they can be differentiated again."""

    @staticmethod
    def forward(
        x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
    ) -> Tensor:
        if is_compiling():
            return delta_formula(x, f, beta, v, mix, total, eps2, add)
        done = _native(x, f, beta, v, mix, total, eps2, add)
        return delta_eager(x, f, beta, v, mix, total, eps2, add) if done is None else done

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, total, ctx.eps2, ctx.add = inputs
        ctx.total = total is not None
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, f, beta, v, mix = ctx.saved_tensors
        grads = delta_gradients(grad, x, f, beta, v, mix, ctx.total, ctx.eps2, ctx.add)
        return (*grads, grad if ctx.total and ctx.add else None, None, None)


def _eager(
    x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
) -> Tensor:
    form = delta_eager if canonical(x, f, beta, v, mix, total) else delta_formula
    return form(x, f, beta, v, mix, total, eps2, add)


def _open(
    x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
) -> Tensor:
    if transforming() or is_exporting() or not canonical(x, f, beta, v, mix, total):
        return delta_formula(x, f, beta, v, mix, total, eps2, add)
    return _Delta.call(x, f, beta, v, mix, total, eps2, add)


_native = Native("delta_shortcut")
_operator = fused("delta_shortcut", delta_formula, eager=_eager, open_form=_open, kernels="delta.triton", node=_native)
