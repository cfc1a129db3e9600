"""The delta shortcut of a state with value channels as Triton kernels: a program per row, channel after channel.

The state is read where it lies: equal channels that are views of one cost the memory of one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.register import KERNEL_TYPES
from resfx.ops.triton import PROGRAMS, given, launch, on, row_fits, where_it_lies


@triton.jit
def _direction(f, beta, row, d, columns, eps2):
    fw = tl.load(f + row * d + columns, mask=columns < d, other=0.0).to(tl.float32)
    return fw, tl.rsqrt(tl.sum(fw * fw, axis=0) + eps2), tl.load(beta + row).to(tl.float32)


@triton.jit
def _forward(
    state, f, beta, v, mix, out, steps, n, d, eps2,
    ADD: tl.constexpr, ERASE: tl.constexpr, MIX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    fw, scale, b = _direction(f, beta, row, d, columns, eps2)
    m = 1.0
    if MIX == "scalar":
        m = tl.load(mix).to(tl.float32)
    elif MIX == "channel":
        m = tl.load(mix + columns, mask=inside, other=0.0).to(tl.float32)
    for i in range(n):
        x = tl.load(state + row * steps[0] + i * steps[1] + columns, mask=inside, other=0.0).to(tl.float32)
        change = tl.load(v + row * n + i).to(tl.float32)
        if ERASE:
            change -= tl.sum(fw * x, axis=0) * scale
        weight = b * change * scale
        if MIX != "none":
            weight = m * (weight - 1.0)
        base = x + fw if ADD else x
        tl.store(out + (row * n + i) * d + columns, (base + weight * fw).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad, state, f, beta, v, mix, gx, gf, gbeta, gv, gmix, steps, n, d, rows, eps2,
    ADD: tl.constexpr, ERASE: tl.constexpr, MIX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    m = 1.0
    if MIX == "scalar":
        m = tl.load(mix).to(tl.float32)
    elif MIX == "channel":
        m = tl.load(mix + columns, mask=inside, other=0.0).to(tl.float32)
    summed = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(first, rows, tl.num_programs(0)):
        fw, scale, b = _direction(f, beta, row, d, columns, eps2)
        to_f = tl.zeros((BLOCK,), dtype=tl.float32)
        to_scale, to_beta, to_mix = 0.0, 0.0, 0.0
        for i in range(n):
            x = tl.load(state + row * steps[0] + i * steps[1] + columns, mask=inside, other=0.0).to(tl.float32)
            g = tl.load(grad + (row * n + i) * d + columns, mask=inside, other=0.0).to(tl.float32)
            change = tl.load(v + row * n + i).to(tl.float32)
            dot = 0.0
            if ERASE:
                dot = tl.sum(fw * x, axis=0)
                change -= dot * scale
            weight = b * change * scale
            if MIX != "none":
                weight -= 1.0
                if MIX == "scalar":
                    to_mix += tl.sum(g * fw, axis=0) * weight
                else:
                    summed += g * fw * weight
                weight = m * weight
            a = tl.sum(m * g * fw, axis=0)
            to_change = a * b * scale
            to_beta += a * change * scale
            to_scale += a * b * change
            to_f += weight * g
            if ADD:
                to_f += g
            to_x = g
            if ERASE:
                to_scale -= to_change * dot
                to_f -= to_change * scale * x
                to_x -= to_change * scale * fw
            tl.store(gv + row * n + i, to_change.to(gv.dtype.element_ty))
            tl.store(gx + (row * n + i) * d + columns, to_x.to(gx.dtype.element_ty), mask=inside)
        to_f -= to_scale * scale * scale * scale * fw
        tl.store(gf + row * d + columns, to_f.to(gf.dtype.element_ty), mask=inside)
        tl.store(gbeta + row, to_beta)  # cast to its type
        if MIX == "scalar":
            tl.store(gmix + row, to_mix)
    if MIX == "channel":
        tl.store(gmix + first * d + columns, summed, mask=inside)


def supported(
    state: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, eps2: float, add: bool, erase: bool
) -> bool:
    """Whether the kernels take these: operands as documented, none broadcast."""
    *lead, n, d = state.shape
    shaped = list(f.shape) == [*lead, d] and list(beta.shape) == [*lead, 1] and list(v.shape) == [*lead, n]
    mixed = mix is None or ((mix.ndim == 0 or mix.shape in ((1,), f.shape[-1:])) and mix.dtype in KERNEL_TYPES)
    return row_fits(state) and shaped and mixed and all(t.dtype in KERNEL_TYPES for t in (f, beta, v))


def forward(
    state: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None, eps2: float, add: bool, erase: bool
) -> Tensor:
    """:func:`resfx.ops.channels.formula.delta_write`."""
    *_, n, d = state.shape
    out = state.new_empty(state.shape)
    rows, f, beta, v = where_it_lies(state), f.contiguous(), beta.contiguous(), v.contiguous()
    with on(out):
        _forward[(rows.shape[0],)](
            rows, f, beta, v, given(mix, f), out, rows.stride()[:2], n, d, eps2,
            ADD=add, ERASE=erase, MIX=_kind(mix), **launch(d),
        )  # fmt: skip
    return out


def gradients(
    grad: Tensor, state: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor | None,
    eps2: float, add: bool, erase: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of :func:`forward`; sums over rows are taken in a fixed order, without atomics."""
    *_, n, d = state.shape
    gx = state.new_empty(state.shape)
    rows, grad, f, beta, v = where_it_lies(state), grad.contiguous(), f.contiguous(), beta.contiguous(), v.contiguous()
    gf, gbeta, gv = (torch.empty_like(t) for t in (f, beta, v))
    kind, count = _kind(mix), rows.shape[0]
    programs = min(count, PROGRAMS) if kind == "channel" else count
    gmix = f.new_empty({"none": (1,), "scalar": (count,), "channel": (programs, d)}[kind], dtype=torch.float32)
    with on(gx):
        _backward[(programs,)](
            grad, rows, f, beta, v, given(mix, f), gx, gf, gbeta, gv, gmix, rows.stride()[:2], n, d, count, eps2,
            ADD=add, ERASE=erase, MIX=kind, **launch(d),
        )  # fmt: skip
    return gx, gf, gbeta, gv, None if mix is None else gmix.sum(0).to(mix.dtype).view(mix.shape), None, None, None


def _kind(mix: Tensor | None) -> str:
    return "none" if mix is None else "scalar" if mix.numel() == 1 else "channel"
