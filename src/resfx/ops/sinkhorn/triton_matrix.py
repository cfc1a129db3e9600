"""Small matrices in registers: a tuple of vectors, one for each entry by rows, with a lane for each matrix of a block.

Sums over rows and columns are written out, and no thread waits for another.
"""

# Tuples grow entry by entry:
# mypy: disable-error-code="assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOWEST = tl.constexpr(-40.0)  # as in resfx.ops.sinkhorn.formula.sinkhorn_formula, as is the next
STRIDE = tl.constexpr(4.0)
EPSILON = tl.constexpr(torch.finfo(torch.float32).eps)
ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def entries(x, row, apart, inside, BLOCK: tl.constexpr, N: tl.constexpr):
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
def write(x, m, row, inside, BLOCK: tl.constexpr, N: tl.constexpr):
    """The reverse of :func:`entries`, for a matrix in one piece."""
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
def top_of(m, N: tl.constexpr):
    """The largest entry."""
    top = m[0]
    for e in tl.static_range(1, N * N):
        top = tl.maximum(top, m[e], propagate_nan=ALL)
    return top


@triton.jit
def exponentials(m, top, N: tl.constexpr):
    """Of the entries less the largest, none of them denormal."""
    out = ()
    for e in tl.static_range(N * N):
        out += (tl.exp(tl.maximum(m[e] - top, LOWEST, propagate_nan=ALL)),)
    return out


@triton.jit
def products(a, b, COUNT: tl.constexpr):
    """Entry by entry."""
    out = ()
    for i in tl.static_range(COUNT):
        out += (a[i] * b[i],)
    return out


@triton.jit
def all_of(value: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr):
    """A vector of one number."""
    out = ()
    for _ in tl.static_range(N):
        out += (tl.full((BLOCK,), value, tl.float32),)
    return out


@triton.jit
def sums_of(m, v, ROWS: tl.constexpr, N: tl.constexpr):
    """``M v``, or ``M^T v``: sums over rows, or over columns."""
    out = ()
    for i in tl.static_range(N):
        total = (m[i * N] if ROWS else m[i]) * v[0]
        for j in tl.static_range(1, N):
            total += (m[i * N + j] if ROWS else m[j * N + i]) * v[j]
        out += (total,)
    return out


@triton.jit
def unit(m, v, ROWS: tl.constexpr, N: tl.constexpr):
    """What to scale rows (columns) by for sums of one, where columns (rows) are scaled by ``v``."""
    sums, out = sums_of(m, v, ROWS, N), ()
    for i in tl.static_range(N):
        out += (1.0 / sums[i],)
    return out


@triton.jit
def scaled(m, r, c, N: tl.constexpr):
    """Rows times ``r``, columns times ``c``."""
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
def solve(p, right, BLOCK: tl.constexpr, N: tl.constexpr):
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
    b = all_of(0.0, BLOCK, 1)
    for k in tl.static_range(N - 2, -1, -1):
        found = right[k]
        for j in tl.static_range(k + 1, N - 1):
            found += w[j * N + k] * b[j - k - 1]
        b = (found,) + b  # noqa: RUF005
    return b
