"""The delta shortcut as two Triton kernels, forward and backward: one pass over memory each, a program per row.

Arithmetic and reductions run in float32. Checked with Triton's interpreter (``TRITON_INTERPRET=1``) against the
formula; the launch parameters below are estimates: ``make gpu`` tries others on a card.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.triton import PROGRAMS, given, launch, on, row_fits

from .formula import canonical


@triton.jit
def _row(x, f, beta, v, eps2, row, at, inside):
    """Operands of a row in float32, and what the update is made of."""
    xw = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    fw = tl.load(f + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(fw * fw, axis=0) + eps2)
    p = tl.sum(fw * xw, axis=0) * scale
    b = tl.load(beta + row).to(tl.float32)
    error = tl.load(v + row).to(tl.float32) - p
    return xw, fw, scale, p, b, error


@triton.jit
def _forward(
    x, f, beta, v, mix, total, out, d, eps2,
    BASE: tl.constexpr, MIX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    at = row * d + columns
    xw, fw, scale, _, b, error = _row(x, f, beta, v, eps2, row, at, inside)
    weight = b * error * scale
    if MIX == "scalar":
        weight = tl.load(mix).to(tl.float32) * (weight - 1)
    elif MIX == "channel":
        weight = tl.load(mix + columns, mask=inside, other=0.0).to(tl.float32) * (weight - 1)
    kind = out.dtype.element_ty
    if BASE == "sum":
        base = (xw + fw).to(kind).to(tl.float32)
    elif BASE == "total":
        base = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
    else:
        base = xw
    tl.store(out + at, (base + (weight * fw).to(kind).to(tl.float32)).to(kind), mask=inside)


@triton.jit
def _backward(
    grad, x, f, beta, v, mix, gx, gf, gbeta, gv, gmix, rows, d, eps2,
    BASE: tl.constexpr, MIX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    summed = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(first, rows, tl.num_programs(0)):
        at = row * d + columns
        xw, fw, scale, p, b, error = _row(x, f, beta, v, eps2, row, at, inside)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        weight = b * error * scale
        product = g * fw
        a = tl.sum(product, axis=0)
        if MIX == "scalar":
            m = tl.load(mix).to(tl.float32)
            tl.store(gmix + row, a * (weight - 1))
            a, weight = m * a, m * (weight - 1)
        elif MIX == "channel":
            m = tl.load(mix + columns, mask=inside, other=0.0).to(tl.float32)
            summed += product * (weight - 1)
            a, weight = tl.sum(m * product, axis=0), m * (weight - 1)
        across = -a * b * scale * scale
        along = across * (error - p) * scale
        to_x = across * fw
        to_f = weight * g + across * xw + along * fw
        if BASE != "total":
            to_x += g
        if BASE == "sum":
            to_f += g
        tl.store(gx + at, to_x.to(gx.dtype.element_ty), mask=inside)
        tl.store(gf + at, to_f.to(gf.dtype.element_ty), mask=inside)
        tl.store(gbeta + row, (a * error * scale).to(gbeta.dtype.element_ty))
        tl.store(gv + row, (a * b * scale).to(gv.dtype.element_ty))
    if MIX == "channel":
        tl.store(gmix + first * d + columns, summed, mask=inside)


def supported(
    x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
) -> bool:
    """Whether the kernels take a stream of this type and width, and these operands as documented."""
    return row_fits(x) and canonical(x, f, beta, v, mix, total)


def forward(
    x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None, eps2: float, add: bool
) -> Tensor:
    """:func:`resfx.ops.delta.formula.delta_formula` for contiguous or other layouts; shapes as documented there."""
    d = x.shape[-1]
    x, f, beta, v = (t.contiguous() for t in (x, f, beta, v))
    out = torch.empty_like(x)
    base = "x" if not add else "sum" if total is None else "total"
    with on(x):
        _forward[(x.numel() // d,)](
            x, f, beta, v, given(mix, x), given(total, x), out, d, eps2, BASE=base, MIX=_kind(mix), **launch(d)
        )
    return out


def gradients(
    grad: Tensor, x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, total: Tensor | None,
    eps2: float, add: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """:func:`resfx.ops.delta.formula.delta_gradients`; sums over rows are taken in a fixed order, without atomics."""
    d = x.shape[-1]
    rows = x.numel() // d
    grad, x, f, beta, v = (t.contiguous() for t in (grad, x, f, beta, v))
    gx, gf, gbeta, gv = (torch.empty_like(t) for t in (x, f, beta, v))
    base = "x" if not add else "sum" if total is None else "total"
    kind = _kind(mix)
    programs = min(rows, PROGRAMS) if kind == "channel" else rows
    partial = {"none": gx, "scalar": x.new_empty(rows, dtype=torch.float32),
               "channel": x.new_empty(programs, d, dtype=torch.float32)}[kind]  # fmt: skip
    with on(x):
        _backward[(programs,)](
            grad, x, f, beta, v, given(mix, x), gx, gf, gbeta, gv, partial, rows, d, eps2,
            BASE=base, MIX=kind, **launch(d),
        )  # fmt: skip
    gmix = None if mix is None else partial.sum(0).to(mix.dtype).view(mix.shape)
    return gx, gf, gbeta, gv, gmix, grad if base == "total" else None, None, None


def _kind(mix: Tensor | None) -> str:
    return "none" if mix is None else "scalar" if mix.numel() == 1 else "channel"
