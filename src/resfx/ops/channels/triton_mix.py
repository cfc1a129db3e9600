"""The mix of a wide state as Triton kernels: a program per row, a block of features of all channels at a time."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.register import KERNEL_TYPES
from resfx.ops.triton import on, row_fits, where_it_lies

MOST = 16  # channels
ELEMENTS, WARPS = 8192, 4  # of a tile of channels by channels by features, and of a program


@triton.jit
def _channels(state, start, step, i, n, columns, d):
    """A block of all channels in float32, zeros where there are none."""
    inside = (i < n)[:, None] & (columns < d)[None, :]
    return tl.load(state + start + i[:, None] * step + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _first(x, i):
    return tl.sum(tl.where((i == 0)[:, None], x, 0.0), axis=0)


@triton.jit
def _forward(
    state, f, write, matrix, out, steps, apart, ms, n, d,
    MIX: tl.constexpr, UNIT: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N)
    for at in range(0, d, BLOCK):
        columns = at + tl.arange(0, BLOCK)
        inside = columns < d
        x = _channels(state, row * steps[0], steps[1], i, n, columns, d)
        fw = tl.load(f + row * d + columns, mask=inside, other=0.0).to(tl.float32)
        first = tl.zeros((BLOCK,), dtype=tl.float32)
        if MIX:
            if UNIT:
                first = _first(x, i)
            x = x - first[None, :]
        for k in range(n):
            if MIX:
                m = tl.load(matrix + row * ms[0] + k * ms[1] + i * ms[2], mask=i < n, other=0.0).to(tl.float32)
            else:
                m = tl.where(i == k, 1.0, 0.0)
            w = tl.load(write + row * apart + k).to(tl.float32)
            total = first + tl.sum(m[:, None] * x, axis=0) + w * fw
            tl.store(out + (row * n + k) * d + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad, state, f, write, matrix, gx, gf, gw, gm, steps, apart, ms, n, d,
    MIX: tl.constexpr, UNIT: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N)
    w = tl.load(write + row * apart + i, mask=i < n, other=0.0).to(tl.float32)
    m = tl.zeros((N, N), dtype=tl.float32)  # row: to, column: from
    inside = (i < n)[:, None] & (i < n)[None, :]
    if MIX:
        where = row * ms[0] + i[:, None] * ms[1] + i[None, :] * ms[2]
        m = tl.load(matrix + where, mask=inside, other=0.0).to(tl.float32)
        if UNIT:
            others = tl.sum(tl.where((i == 0)[None, :], 0.0, m), axis=1)
            m = tl.where((i == 0)[None, :], 1.0 - others[:, None], m)
    to_w, to_m = tl.zeros((N,), dtype=tl.float32), tl.zeros((N, N), dtype=tl.float32)
    for at in range(0, d, BLOCK):
        columns = at + tl.arange(0, BLOCK)
        g = _channels(grad, row * n * d, d, i, n, columns, d)
        fw = tl.load(f + row * d + columns, mask=columns < d, other=0.0).to(tl.float32)
        to_w += tl.sum(g * fw[None, :], axis=1)
        tl.store(gf + row * d + columns, tl.sum(w[:, None] * g, axis=0).to(gf.dtype.element_ty), mask=columns < d)
        if MIX:
            x = _channels(state, row * steps[0], steps[1], i, n, columns, d)
            if UNIT:
                x = x - _first(x, i)[None, :]
            to_m += tl.sum(g[:, None, :] * x[None, :, :], axis=2)
            to_x = tl.sum(m[:, :, None] * g[:, None, :], axis=0)
            there = gx + (row * n + i[:, None]) * d + columns[None, :]
            tl.store(there, to_x.to(gx.dtype.element_ty), mask=(i < n)[:, None] & (columns < d)[None, :])
    tl.store(gw + row * n + i, to_w, mask=i < n)
    if MIX:
        tl.store(gm + row * n * n + i[:, None] * n + i[None, :], to_m, mask=inside)


def supported(state: Tensor, f: Tensor, write: Tensor, matrix: Tensor | None, unit: bool) -> bool:
    """Whether the kernels take these: up to 16 channels; numbers per row, or the same for all rows."""
    *rows, n, d = state.shape
    shaped = list(f.shape) == [*rows, d] and list(write.shape) in ([n], [*rows, n])
    mixed = matrix is None or (list(matrix.shape) in ([n, n], [*rows, n, n]) and matrix.dtype in KERNEL_TYPES)
    return row_fits(state) and n <= MOST and shaped and mixed and all(t.dtype in KERNEL_TYPES for t in (f, write))


def forward(state: Tensor, f: Tensor, write: Tensor, matrix: Tensor | None, unit: bool) -> Tensor:
    """:func:`resfx.ops.channels.formula.mix`."""
    out, rows = state.new_empty(state.shape), where_it_lies(state)
    numbers, options = _arguments(rows, write, matrix, unit)
    with on(out):
        _forward[(rows.shape[0],)](
            rows, f.contiguous(), write.contiguous(), _rows(matrix, out), out, *numbers, **options
        )  # fmt: skip
    return out


def gradients(
    grad: Tensor, state: Tensor, f: Tensor, write: Tensor, matrix: Tensor | None, unit: bool
) -> tuple[Tensor | None, ...]:
    """The gradients of :func:`forward`; sums over rows are taken in a fixed order, without atomics."""
    rows, grad = where_it_lies(state), grad.contiguous()
    count, n, _ = rows.shape
    gx = grad if matrix is None else state.new_empty(state.shape)
    gf = torch.empty_like(f, memory_format=torch.contiguous_format)
    gw = state.new_empty((count, n), dtype=torch.float32)
    gm = state.new_empty((count, n, n) if matrix is not None else 1, dtype=torch.float32)
    numbers, options = _arguments(rows, write, matrix, unit)
    with on(gf):
        _backward[(count,)](
            grad, rows, f.contiguous(), write.contiguous(), _rows(matrix, gf), gx, gf, gw, gm, *numbers, **options
        )
    gw = (gw.sum(0) if write.ndim == 1 else gw).reshape(write.shape).to(write.dtype)
    if matrix is None:
        return gx, gf, gw, None, None
    return gx, gf, gw, (gm.sum(0) if matrix.ndim == 2 else gm).reshape(matrix.shape).to(matrix.dtype), None


def _rows(matrix: Tensor | None, instead: Tensor) -> Tensor:
    return instead if matrix is None else matrix.reshape(-1, *matrix.shape[-2:])


def _arguments(
    rows: Tensor, write: Tensor, matrix: Tensor | None, unit: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    n, d = rows.shape[1:]
    channels = triton.next_power_of_2(n)
    between: tuple[int, ...] = (0, 0, 0)
    if matrix is not None:
        between = _rows(matrix, rows).stride()
        between = (0 if matrix.ndim == 2 else between[0], *between[1:])
    block = min(triton.next_power_of_2(d), max(32, ELEMENTS // channels**2))
    options = {"MIX": matrix is not None, "UNIT": unit, "N": channels, "BLOCK": block, "num_warps": WARPS}
    return (rows.stride()[:2], 0 if write.ndim == 1 else n, between, n, d), options
