"""Sinkhorn-Knopp as Triton kernels: a matrix per thread, its entries in registers from the first round to the last.

A matrix is a tuple of vectors, one for each entry by rows, with a lane for each matrix of a block: sums over rows and
columns are written out, and no thread waits for another.
"""

# Tuples grow entry by entry:
# mypy: disable-error-code="assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.triton import PROGRAMS, on

MOST = 8  # rows of a matrix, for registers
BLOCK = 32  # matrices of a program, which is one warp
LOWEST = tl.constexpr(-40.0)  # as in resfx.ops.sinkhorn.formula.sinkhorn_formula, as is the next
STRIDE = tl.constexpr(4.0)
EPSILON = tl.constexpr(torch.finfo(torch.float32).eps)
ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _entries(x, row, apart, inside, BLOCK: tl.constexpr, N: tl.constexpr):
    """A matrix per lane, read four entries of a row at a time."""
    m = ()
    for i in tl.static_range(N):
        for q in tl.static_range(0, N, 4):
            columns = q + tl.arange(0, 4)
            at = (row * apart[0] + i * apart[1])[:, None] + (columns * apart[2])[None, :]
            four = tl.load(x + at, mask=inside[:, None] & (columns < N)[None, :], other=0.0).to(tl.float32)
            even, odd = tl.split(tl.reshape(four, (BLOCK, 2, 2)))
            first, third = tl.split(even)
            second, fourth = tl.split(odd)
            m += (first,)
            if q + 1 < N:
                m += (second,)
            if q + 2 < N:
                m += (third,)
            if q + 3 < N:
                m += (fourth,)
    return m


@triton.jit
def _write(x, m, row, inside, BLOCK: tl.constexpr, N: tl.constexpr):
    for i in tl.static_range(N):
        for q in tl.static_range(0, N, 4):
            columns = q + tl.arange(0, 4)
            last = m[i * N + N - 1]
            even = tl.join(m[i * N + q], m[i * N + q + 2] if q + 2 < N else last)
            odd = tl.join(m[i * N + q + 1] if q + 1 < N else last, m[i * N + q + 3] if q + 3 < N else last)
            four = tl.reshape(tl.join(even, odd), (BLOCK, 4))
            at = (row * (N * N) + i * N)[:, None] + columns[None, :]
            tl.store(x + at, four, mask=inside[:, None] & (columns < N)[None, :])


@triton.jit
def _top(m, N: tl.constexpr):
    top = m[0]
    for e in tl.static_range(1, N * N):
        top = tl.maximum(top, m[e], propagate_nan=ALL)
    return top


@triton.jit
def _exponentials(m, top, N: tl.constexpr):
    out = ()
    for e in tl.static_range(N * N):
        out += (tl.exp(tl.maximum(m[e] - top, LOWEST, propagate_nan=ALL)),)
    return out


@triton.jit
def _products(a, b, COUNT: tl.constexpr):
    out = ()
    for i in tl.static_range(COUNT):
        out += (a[i] * b[i],)
    return out


@triton.jit
def _all(value: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr):
    out = ()
    for _ in tl.static_range(N):
        out += (tl.full((BLOCK,), value, tl.float32),)
    return out


@triton.jit
def _sums(m, v, ROWS: tl.constexpr, N: tl.constexpr):
    """``M v``, or ``M^T v``: sums over rows, or over columns."""
    out = ()
    for i in tl.static_range(N):
        total = (m[i * N] if ROWS else m[i]) * v[0]
        for j in tl.static_range(1, N):
            total += (m[i * N + j] if ROWS else m[j * N + i]) * v[j]
        out += (total,)
    return out


@triton.jit
def _unit(m, v, ROWS: tl.constexpr, N: tl.constexpr):
    """What to scale rows (columns) by for sums of one, where columns (rows) are scaled by ``v``."""
    sums, out = _sums(m, v, ROWS, N), ()
    for i in tl.static_range(N):
        out += (1.0 / sums[i],)
    return out


@triton.jit
def _scaled(m, r, c, N: tl.constexpr):
    out = ()
    for e in tl.static_range(N * N):
        out += (r[e // N] * m[e] * c[e % N],)
    return out


@triton.jit
def _eliminated(w, right, K: tl.constexpr, N: tl.constexpr):
    """What couples the others once column ``K`` is gone, in the lower triangle what it takes of each of them."""
    total = w[K * N + K + 1]
    for j in tl.static_range(K + 2, N):
        total += w[K * N + j]
    inverse = 1.0 / total
    coupled, answered = (), ()
    for j in tl.static_range(N):
        if j < K:
            answered += (right[j],)
        elif j == K:
            answered += (right[K] * inverse,)
        else:
            answered += (right[j] + w[K * N + j] * (right[K] * inverse),)
        for i in tl.static_range(N):
            if j <= K:
                coupled += (w[j * N + i],)
            elif i > j:
                coupled += (w[j * N + i] + w[K * N + j] * (w[K * N + i] * inverse),)
            elif i == K:
                coupled += (w[K * N + j] * inverse,)
            else:
                coupled += (w[j * N + i],)
    return coupled, answered


@triton.jit
def _solve(p, right, BLOCK: tl.constexpr, N: tl.constexpr):
    """:func:`resfx.ops.sinkhorn.formula._solve`, the diagonal never formed: what is eliminated leaves couplings
    behind, all of them sums of positive numbers, which are what the next diagonal is the sum of."""
    w = ()
    for e in tl.static_range(N * N):
        total = p[e // N] * p[e % N]
        for i in tl.static_range(1, N):
            total += p[i * N + e // N] * p[i * N + e % N]
        w += (total + EPSILON if e % N == N - 1 else total,)
    for k in tl.static_range(N - 1):
        w, right = _eliminated(w, right, k, N)
    b = _all(0.0, BLOCK, 1)
    for k in tl.static_range(N - 2, -1, -1):
        found = right[k]
        for j in tl.static_range(k + 1, N - 1):
            found += w[j * N + k] * b[j - k - 1]
        b = (found,) + b  # noqa: RUF005
    return b


@triton.jit
def _newton(p, BLOCK: tl.constexpr, N: tl.constexpr):
    ones = _all(1.0, BLOCK, N)
    sums, short, c = _sums(p, ones, False, N), (), ()
    for j in tl.static_range(N):
        short += (1.0 - sums[j],)
    step = _solve(p, short, BLOCK, N)
    for j in tl.static_range(N):
        c += (tl.exp(tl.clamp(step[j], -STRIDE, STRIDE, propagate_nan=ALL)),)
    return _scaled(p, _unit(p, c, True, N), c, N)


@triton.jit
def _forward(
    logits, out, rows, iterations, newton, apart,
    BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    m = _entries(logits, row, apart, inside, BLOCK, N)
    m = _exponentials(m, _top(m, N), N)
    # With entries between exp(-40) and 1 scales stay between exp(-43) and exp(40): no sum or product is denormal.
    c = _all(1.0, BLOCK, N)
    r = _all(1.0, BLOCK, N)
    for _ in range(iterations):
        c = _unit(m, r, False, N)
        r = _unit(m, c, True, N)
    m = _scaled(m, r, c, N)
    for _ in range(newton):
        m = _newton(m, BLOCK, N)
    _write(out, m, row, inside, BLOCK, N)


@triton.jit
def _within_rows(p, g, weight, BLOCK: tl.constexpr, N: tl.constexpr):
    """``G`` less its mean over a row as ``P`` weighs it: what is left for columns is small where the gradient is."""
    sums, out = _sums(_products(p, g, N * N), _all(1.0, BLOCK, N), True, N), ()
    for e in tl.static_range(N * N):
        out += (g[e] - weight * sums[e // N],)
    return out


@triton.jit
def _to_limit(p, g, BLOCK: tl.constexpr, N: tl.constexpr):
    b = _solve(p, _sums(_products(p, g, N * N), _all(1.0, BLOCK, N), False, N), BLOCK, N)
    a, out = _sums(p, b, True, N), ()
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
    p, g = _entries(result, row, apart, inside, BLOCK, N), _entries(grad, row, between, inside, BLOCK, N)
    _write(out, _to_limit(p, _within_rows(p, g, 1.0, BLOCK, N), BLOCK, N), row, inside, BLOCK, N)


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
    c = _unit(m, before, False, N)
    u = _products(a, r, N)
    shares, v, to_a, out = _sums(m, u, False, N), (), (), ()
    for j in tl.static_range(N):
        v += ((b[j] - c[j] * shares[j]) * c[j],)
    shares = _sums(m, v, True, N)
    for i in tl.static_range(N):
        to_a += (-before[i] * shares[i],)
    for e in tl.static_range(N * N):
        out += (to_m[e] - u[e // N] * c[e % N] - before[e // N] * v[e % N],)
    return out, to_a


@triton.jit
def _to_logits(logits, m, to_m, N: tl.constexpr):
    top, out = _top(logits, N), ()
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
        x = _entries(logits, row, apart, inside, BLOCK, N)
        m = _exponentials(x, _top(x, N), N)
        c = _all(1.0, BLOCK, N)
        r = _all(1.0, BLOCK, N)
        for t in range(iterations):
            _put(own + t * (N * BLOCK), r, BLOCK, N)
            c = _unit(m, r, False, N)
            r = _unit(m, c, True, N)
        tl.debug_barrier()  # what was written is read from here on
        g = _entries(grad, row, between, inside, BLOCK, N)
        g = _within_rows(_scaled(m, r, c, N), g, tl.where(iterations > 0, 1.0, 0.0), BLOCK, N)
        to_m, a = _scaled(g, r, c, N), _all(0.0, BLOCK, N)
        b = _sums(_products(m, to_m, N * N), _all(1.0, BLOCK, N), False, N)
        for t in range(iterations):
            before = _take(own + (iterations - 1 - t) * (N * BLOCK), BLOCK, N)
            to_m, a = _from_round(m, to_m, a, b, r, before, N)
            b, r = _all(0.0, BLOCK, N), before
        _write(out, _to_logits(x, m, to_m, N), row, inside, BLOCK, N)
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
