"""The short depthwise convolution as Triton kernels: tiles of positions and channels, every tap from cache.

With activation, bias and base in one pass. Backwards, what goes into the activation is computed again; the rest is
the same convolution with its taps turned round.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.register import KERNEL_TYPES
from resfx.ops.triton import given, on, place_of

MOST = 32  # taps
ROWS, COLUMNS = 64, 64


@triton.jit
def _at(x, batch, rows, size, columns, width):
    """Positions of a batch in float32, zeros where there are none."""
    inside = ((rows >= 0) & (rows < size))[:, None] & (columns < width)[None, :]
    where = (batch * size + rows)[:, None] * width + columns[None, :]
    return tl.load(x + where, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _mixed(
    x, weight, bias, batch, t, columns, left, S, width,
    TAPS: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for s in tl.static_range(TAPS):
        tap = tl.load(weight + columns * TAPS + s, mask=columns < width, other=0.0).to(tl.float32)
        total += _at(x, batch, t - left + s, S, columns, width) * tap[None, :]
    if BIAS:
        total += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def _forward(
    x, weight, bias, base, out, left, S, size, width,
    TAPS: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, BASE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, start = place_of(size, ROWS)
    t = start + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = _mixed(x, weight, bias, batch, t, columns, left, S, width, TAPS, BIAS, ROWS, COLUMNS)
    if SILU:
        total = total * tl.sigmoid(total)
    kind = out.dtype.element_ty
    if BASE:
        total = _at(base, batch, t, size, columns, width) + total.to(kind).to(tl.float32)
    inside = (t < size)[:, None] & (columns < width)[None, :]
    tl.store(out + (batch * size + t)[:, None] * width + columns[None, :], total.to(kind), mask=inside)


@triton.jit
def _backward(
    grad, x, weight, bias, through, gw, gb, left, S, size, width,
    TAPS: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, start = place_of(size, ROWS)
    t = start + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    g = _at(grad, batch, t, size, columns, width)
    if SILU:
        z = _mixed(x, weight, bias, batch, t, columns, left, S, width, TAPS, BIAS, ROWS, COLUMNS)
        open = tl.sigmoid(z)
        g = g * open * (1.0 + z * (1.0 - open))
        inside = (t < size)[:, None] & (columns < width)[None, :]
        tl.store(through + (batch * size + t)[:, None] * width + columns[None, :], g, mask=inside)
    block = tl.program_id(0).to(tl.int64)
    for s in tl.static_range(TAPS):
        part = tl.sum(g * _at(x, batch, t - left + s, S, columns, width), axis=0)
        tl.store(gw + (block * width + columns) * TAPS + s, part, mask=columns < width)
    if BIAS:
        tl.store(gb + block * width + columns, tl.sum(g, axis=0), mask=columns < width)


def supported(
    x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None, silu: bool, left: int, size: int
) -> bool:
    """Whether the kernels take these: operands as documented, at most 32 taps."""
    tensors = [t for t in (x, weight, bias, base) if t is not None]
    shaped = x.ndim == 3 and weight.shape[0] == x.shape[-1] and (bias is None or bias.shape == x.shape[-1:])
    added = base is None or base.shape == (x.shape[0], size, x.shape[-1])
    known = all(t.dtype in KERNEL_TYPES for t in tensors)
    return shaped and added and known and 0 < weight.shape[1] <= MOST and x.numel() > 0 and size > 0


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None, silu: bool, left: int, size: int
) -> Tensor:
    """:func:`resfx.ops.short_convolution.formula.short_convolution`."""
    out = (x if base is None else base).new_empty((x.shape[0], size, x.shape[-1]))
    _run(x, weight, bias, base, out, silu, left)
    return out


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None, silu: bool,
    left: int, size: int,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of :func:`forward`; sums over positions are taken in a fixed order, without atomics."""
    batch, length, width = x.shape
    taps, grad = weight.shape[1], grad.contiguous()
    through = torch.empty_like(grad, dtype=torch.float32) if silu else grad
    grid = _grid(size, batch, width)
    gw = x.new_empty((grid[0], width, taps), dtype=torch.float32)
    gb = x.new_empty((grid[0], width), dtype=torch.float32) if bias is not None else gw
    with on(x):
        _backward[grid](
            grad, x.contiguous(), weight.contiguous(), given(bias, x), through, gw, gb, left, length, size, width,
            TAPS=taps, BIAS=bias is not None, SILU=silu, ROWS=ROWS, COLUMNS=COLUMNS,
        )  # fmt: skip
    gx = torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(through, weight.flip(1), None, None, gx, False, taps - 1 - left)
    to_bias = None if bias is None else gb.sum(0).to(bias.dtype)
    return gx, gw.sum(0).to(weight.dtype), to_bias, None if base is None else grad, None, None, None


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None, out: Tensor, silu: bool, left: int
) -> None:
    with on(x):
        _forward[_grid(out.shape[1], out.shape[0], out.shape[2])](
            x.contiguous(), weight.contiguous(), given(bias, x), given(base, x), out, left, x.shape[1], *out.shape[1:],
            TAPS=weight.shape[1], BIAS=bias is not None, SILU=silu, BASE=base is not None,
            ROWS=ROWS, COLUMNS=COLUMNS,
        )  # fmt: skip


def _grid(size: int, batch: int, width: int) -> tuple[int, int]:
    return triton.cdiv(size, ROWS) * batch, triton.cdiv(width, COLUMNS)
