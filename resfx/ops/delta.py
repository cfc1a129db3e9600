"""The delta shortcut, the operator of Deep Delta Learning (arXiv 2601.00417, section 2.1).

With ``k = f / sqrt(|f|^2 + eps2)`` and ``p = k . x`` the published form is ``x + beta (v - p) k``, a rank-one
update whose matrix ``I - beta k k^T`` has eigenvalues ``1`` and ``1 - beta``. Since ``k`` is a multiple of ``f``,
every form is the shortcut plus a number per row times ``f``: that is how it is computed here, in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._operators import accumulator, keeps_one_node


def delta_formula(
    x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
) -> Tensor:
    """See :func:`delta_shortcut`."""
    wide = accumulator(x.dtype)
    xw, fw = x.to(wide), f.to(wide)
    scale = torch.rsqrt((fw * fw).sum(-1, keepdim=True) + eps2)
    p = (fw * xw).sum(-1, keepdim=True) * scale
    weight = beta.to(wide) * (v.to(wide) - p) * scale
    if mix is not None:
        weight = mix.to(wide) * (weight - 1)
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
        mix: interpolation, ``()`` or ``(d,)``.
        total: ``x + f`` as the host computes it (``torch.add`` with ``alpha`` rounds once, not twice).
        eps2: added to the squared norm of ``f``.
        add: whether the plain sum is the base.

    Returns:
        The new stream, ``(..., d)``, in the type of ``x``; reductions run in float32 for half types.
    """
    if keeps_one_node():
        return torch.ops.resfx.delta_shortcut(x, f, beta, v, mix, total, eps2, add)
    return delta_formula(x, f, beta, v, mix, total, eps2, add)


@torch.library.custom_op("resfx::delta_shortcut", mutates_args=())
def _delta_op(
    x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
) -> Tensor:
    return delta_formula(x, f, beta, v, mix, total, eps2, add)


@_delta_op.register_fake
def _(
    x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
) -> Tensor:
    return delta_formula(x, f, beta, v, mix, total, eps2, add)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps2, ctx.add = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors: list[Any] = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
    with torch.enable_grad():
        out = delta_formula(*tensors, ctx.eps2, ctx.add)  # type: ignore[call-arg]
    given = [t for t in tensors if t is not None]
    grads = iter(torch.autograd.grad(out, given, grad, allow_unused=True))
    return (*(None if t is None else next(grads) for t in tensors), None, None)


_delta_op.register_autograd(_backward, setup_context=_save)
