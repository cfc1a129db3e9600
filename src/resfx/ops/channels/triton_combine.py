"""Channels of a wide state to one vector as Triton kernels: a program per row, channel after channel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.register import KERNEL_TYPES
from resfx.ops.triton import given, launch, on, row_fits, where_it_lies


@triton.jit
def _forward(
    state, weights, excess, out, steps, step, beyond, n, d,
    CENTRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    start = state + row * steps[0] + columns
    total, first = tl.zeros((BLOCK,), dtype=tl.float32), tl.zeros((BLOCK,), dtype=tl.float32)
    if CENTRED:
        first = tl.load(start, mask=inside, other=0.0).to(tl.float32)
        total = first + tl.load(excess + row * beyond).to(tl.float32) * first
    for j in range(n):
        x = tl.load(start + j * steps[1], mask=inside, other=0.0).to(tl.float32)
        total += tl.load(weights + row * step + j).to(tl.float32) * (x - first)
    tl.store(out + row * d + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad, state, weights, excess, gx, gw, ge, steps, step, beyond, n, d,
    CENTRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    start = state + row * steps[0] + columns
    g = tl.load(grad + row * d + columns, mask=inside, other=0.0).to(tl.float32)
    first = tl.zeros((BLOCK,), dtype=tl.float32)
    rest = 0.0
    if CENTRED:
        first = tl.load(start, mask=inside, other=0.0).to(tl.float32)
        tl.store(ge + row, tl.sum(first * g, axis=0))
        rest = 1.0 + tl.load(excess + row * beyond).to(tl.float32)
        for j in range(n):
            rest -= tl.load(weights + row * step + j).to(tl.float32)
    for j in range(n):
        x = tl.load(start + j * steps[1], mask=inside, other=0.0).to(tl.float32)
        tl.store(gw + row * n + j, tl.sum((x - first) * g, axis=0))
        weight = tl.load(weights + row * step + j).to(tl.float32)
        if CENTRED:
            weight += tl.where(j == 0, rest, 0.0)
        tl.store(gx + (row * n + j) * d + columns, (weight * g).to(gx.dtype.element_ty), mask=inside)


def supported(state: Tensor, weights: Tensor, excess: Tensor | None) -> bool:
    """Whether the kernels take these: a weight per channel, and an excess per row, or the same for all rows."""
    *rows, n, _ = state.shape
    weighed = list(weights.shape) in ([n, 1], [*rows, n, 1]) and weights.dtype in KERNEL_TYPES
    more = excess is None or (list(excess.shape) in ([1], [*rows, 1]) and excess.dtype in KERNEL_TYPES)
    return row_fits(state) and weighed and more


def forward(state: Tensor, weights: Tensor, excess: Tensor | None) -> Tensor:
    """:func:`resfx.ops.channels.formula.combine`."""
    *shape, n, d = state.shape
    out, rows = state.new_empty((*shape, d)), where_it_lies(state)
    with on(out):
        _forward[(rows.shape[0],)](
            rows, weights.contiguous(), given(excess, out), out, rows.stride()[:2],
            *_steps(weights, excess), n, d, CENTRED=excess is not None, **launch(d),
        )  # fmt: skip
    return out


def gradients(
    grad: Tensor, state: Tensor, weights: Tensor, excess: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of :func:`forward`."""
    *_, n, d = state.shape
    gx, rows = state.new_empty(state.shape), where_it_lies(state)
    gw = state.new_empty((rows.shape[0], n), dtype=torch.float32)
    ge = state.new_empty((rows.shape[0], 1), dtype=torch.float32)
    with on(gx):
        _backward[(rows.shape[0],)](
            grad.contiguous(), rows, weights.contiguous(), given(excess, gx), gx, gw, ge, rows.stride()[:2],
            *_steps(weights, excess), n, d, CENTRED=excess is not None, **launch(d),
        )  # fmt: skip
    to_weights = (gw.sum(0) if weights.ndim == 2 else gw).reshape(weights.shape).to(weights.dtype)
    if excess is None:
        return gx, to_weights, None
    return gx, to_weights, (ge.sum(0) if excess.ndim == 1 else ge).reshape(excess.shape).to(excess.dtype)


def _steps(weights: Tensor, excess: Tensor | None) -> tuple[int, int]:
    """How far apart the weights of two rows are, and their excesses."""
    return 0 if weights.ndim == 2 else weights.shape[-2], 0 if excess is None or excess.ndim == 1 else 1
