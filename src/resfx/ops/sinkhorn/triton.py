"""Sinkhorn-Knopp as Triton kernels: a matrix per thread, its entries in registers from the first round to the last.

How a matrix lies in registers is in :mod:`.triton_matrix`.
"""

# Tuples grow entry by entry:
# mypy: disable-error-code="assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.triton import PROGRAMS, on

from .triton_matrix import (
    ALL,
    LOWEST,
    STRIDE,
    all_of,
    entries,
    exponentials,
    products,
    scaled,
    solve,
    sums_of,
    top_of,
    unit,
    write,
)

MOST = 8  # rows of a matrix, for registers
BLOCK = 32  # matrices of a program, which is one warp


@triton.jit
def _newton(p, BLOCK: tl.constexpr, N: tl.constexpr):
    ones = all_of(1.0, BLOCK, N)
    sums, short, c = sums_of(p, ones, False, N), (), ()
    for j in tl.static_range(N):
        short += (1.0 - sums[j],)
    step = solve(p, short, BLOCK, N)
    for j in tl.static_range(N):
        c += (tl.exp(tl.clamp(step[j], -STRIDE, STRIDE, propagate_nan=ALL)),)
    return scaled(p, unit(p, c, True, N), c, N)


@triton.jit
def _forward(
    logits, out, rows, iterations, newton, apart,
    BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    m = entries(logits, row, apart, inside, BLOCK, N)
    m = exponentials(m, top_of(m, N), N)
    # With entries between exp(-40) and 1 scales stay between exp(-43) and exp(40): no sum or product is denormal.
    c = all_of(1.0, BLOCK, N)
    r = all_of(1.0, BLOCK, N)
    for _ in range(iterations):
        c = unit(m, r, False, N)
        r = unit(m, c, True, N)
    m = scaled(m, r, c, N)
    for _ in range(newton):
        m = _newton(m, BLOCK, N)
    write(out, m, row, inside, BLOCK, N)


@triton.jit
def _within_rows(p, g, weight, BLOCK: tl.constexpr, N: tl.constexpr):
    """``G`` less its mean over a row as ``P`` weighs it: what is left for columns is small where the gradient is."""
    sums, out = sums_of(products(p, g, N * N), all_of(1.0, BLOCK, N), True, N), ()
    for e in tl.static_range(N * N):
        out += (g[e] - weight * sums[e // N],)
    return out


@triton.jit
def _to_limit(p, g, BLOCK: tl.constexpr, N: tl.constexpr):
    b = solve(p, sums_of(products(p, g, N * N), all_of(1.0, BLOCK, N), False, N), BLOCK, N)
    a, out = sums_of(p, b, True, N), ()
    for e in tl.static_range(N * N):
        out += (p[e] * (g[e] - b[e % N] + a[e // N]),)
    return out


@triton.jit
def _backward_limit(
    grad, result, out, rows, between, apart,
    BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    p, g = entries(result, row, apart, inside, BLOCK, N), entries(grad, row, between, inside, BLOCK, N)
    write(out, _to_limit(p, _within_rows(p, g, 1.0, BLOCK, N), BLOCK, N), row, inside, BLOCK, N)


@triton.jit
def _put(there, v, BLOCK: tl.constexpr, N: tl.constexpr):
    for i in tl.static_range(N):
        tl.store(there + i * BLOCK, v[i])


@triton.jit
def _take(there, BLOCK: tl.constexpr, N: tl.constexpr):
    v = ()
    for i in tl.static_range(N):
        v += (tl.load(there + i * BLOCK),)
    return v


@triton.jit
def _from_round(m, to_m, a, b, r, before, N: tl.constexpr):
    """One round back. A scale is one over a sum; the gradient for its logarithm, ``a`` of rows and ``b`` of columns,
    goes to the summands as they are shares of the sum.

    Args:
        to_m: for the logarithms of the entries, divided by those.
        r: row scales after the round.
        before: row scales before it.
    """
    c = unit(m, before, False, N)
    u = products(a, r, N)
    shares, v, to_a, out = sums_of(m, u, False, N), (), (), ()
    for j in tl.static_range(N):
        v += ((b[j] - c[j] * shares[j]) * c[j],)
    shares = sums_of(m, v, True, N)
    for i in tl.static_range(N):
        to_a += (-before[i] * shares[i],)
    for e in tl.static_range(N * N):
        out += (to_m[e] - u[e // N] * c[e % N] - before[e // N] * v[e % N],)
    return out, to_a


@triton.jit
def _to_logits(logits, m, to_m, N: tl.constexpr):
    top, out = top_of(logits, N), ()
    for e in tl.static_range(N * N):
        out += (tl.where(logits[e] - top < LOWEST, 0.0, m[e] * to_m[e]),)
    return out


@triton.jit
def _backward_rounds(
    grad, logits, out, scales, rows, iterations, between, apart,
    BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64)
    own = scales + first * iterations * (N * BLOCK) + lane
    for start in range(first * BLOCK, rows, tl.num_programs(0) * BLOCK):
        row = start + lane
        inside = row < rows
        x = entries(logits, row, apart, inside, BLOCK, N)
        m = exponentials(x, top_of(x, N), N)
        c = all_of(1.0, BLOCK, N)
        r = all_of(1.0, BLOCK, N)
        for t in range(iterations):
            _put(own + t * (N * BLOCK), r, BLOCK, N)
            c = unit(m, r, False, N)
            r = unit(m, c, True, N)
        tl.debug_barrier()  # what was written is read from here on
        g = entries(grad, row, between, inside, BLOCK, N)
        g = _within_rows(scaled(m, r, c, N), g, tl.where(iterations > 0, 1.0, 0.0), BLOCK, N)
        to_m, a = scaled(g, r, c, N), all_of(0.0, BLOCK, N)
        b = sums_of(products(m, to_m, N * N), all_of(1.0, BLOCK, N), False, N)
        for t in range(iterations):
            before = _take(own + (iterations - 1 - t) * (N * BLOCK), BLOCK, N)
            to_m, a = _from_round(m, to_m, a, b, r, before, N)
            b, r = all_of(0.0, BLOCK, N), before
        write(out, _to_logits(x, m, to_m, N), row, inside, BLOCK, N)
        tl.debug_barrier()  # and only then written over


def supported(logits: Tensor, iterations: int, newton: int) -> bool:
    """Whether the kernels take these: matrices in float32 of up to eight rows."""
    square = logits.ndim >= 2 and logits.shape[-2] == logits.shape[-1] <= MOST
    return square and logits.dtype == torch.float32 and logits.numel() > 0


def forward(logits: Tensor, iterations: int, newton: int) -> Tensor:
    """:func:`resfx.ops.sinkhorn.formula.sinkhorn_formula`."""
    rows, out = _rows(logits), logits.new_empty(logits.shape)
    grid = (triton.cdiv(rows.shape[0], BLOCK),)
    with on(out):
        _forward[grid](rows, out, rows.shape[0], iterations, newton, rows.stride(), **_options(rows))
    return out


def gradients(grad: Tensor, saved: Tensor, iterations: int, newton: int) -> tuple[Tensor, None, None]:
    """The gradients of :func:`forward`: of the limit, from the result, after Newton steps, else of the rounds, from
    the logits. These are run again, and row scales kept for all rounds of as many matrices as run at a time."""
    g, rows, out = _rows(grad), _rows(saved), saved.new_empty(saved.shape)
    count, programs = rows.shape[0], triton.cdiv(rows.shape[0], BLOCK)
    with on(out):
        if newton:
            _backward_limit[(programs,)](g, rows, out, count, g.stride(), rows.stride(), **_options(rows))
        else:
            programs = min(programs, PROGRAMS)
            scales = out.new_empty(programs * max(iterations, 1) * rows.shape[-1] * BLOCK)
            _backward_rounds[(programs,)](
                g, rows, out, scales, count, iterations, g.stride(), rows.stride(), **_options(rows)
            )
    return out, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def _options(rows: Tensor) -> dict[str, int]:
    return {"BLOCK": BLOCK, "N": rows.shape[-1], "num_warps": 1}
