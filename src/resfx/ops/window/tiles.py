"""What the kernels of windowed attention share: tiles of heads, which keys a query reads, and the softmax over them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(tensor, steps, batch, head, rows, size, columns, width, TYPE: tl.constexpr):
    """Rows of a head, zeros where there are none."""
    start = tensor + batch * steps[0] + head * steps[1]
    inside = (rows < size)[:, None] & (columns < width)[None, :]
    return tl.load(start + rows[:, None].to(tl.int64) * steps[2] + columns[None, :], mask=inside, other=0.0).to(TYPE)


@triton.jit
def put(tensor, steps, batch, head, rows, size, columns, width, values):
    start = tensor + batch * steps[0] + head * steps[1]
    inside = (rows < size)[:, None] & (columns < width)[None, :]
    kind = tensor.dtype.element_ty
    tl.store(start + rows[:, None].to(tl.int64) * steps[2] + columns[None, :], values.to(kind), mask=inside)


@triton.jit
def keys_of(t, T, S, window, left, right, CHUNK: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr):
    """First and last-but-one key that queries ``t .. t + BLOCK - 1`` read."""
    if CHUNK:
        first = t // window * window
        last = t + BLOCK if CAUSAL else ((t + BLOCK - 1) // window + 1) * window
    else:
        first, last = t + S - T - left, t + S - T + BLOCK + right
    return tl.maximum(first, 0), tl.minimum(last, S)


@triton.jit
def queries_of(s, T, S, window, left, right, CHUNK: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr):
    """First and last-but-one query that reads one of the keys ``s .. s + BLOCK - 1``."""
    if CHUNK:
        first = s if CAUSAL else s // window * window
        last = ((s + BLOCK - 1) // window + 1) * window
    else:
        first, last = s - S + T - right, s - S + T + BLOCK + left
    return tl.maximum(first, 0), tl.minimum(last, T)


@triton.jit
def scores_of(
    q, k, mask, batch, t, s, T, S, window, left, right, scale,
    MASK: tl.constexpr, CHUNK: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Scaled scores of a tile, minus infinity where a query must not read."""
    i, j = (t + (S - T))[:, None], s[None, :]
    if CHUNK:
        allowed = i // window == j // window
        if CAUSAL:
            allowed = allowed & (j <= i)
    else:
        allowed = (j >= i - left) & (j <= i + right)
    allowed = allowed & (s < S)[None, :] & (t < T)[:, None]
    if MASK:
        real = tl.load(mask + batch * S + s, mask=s < S, other=0)
        allowed = allowed & (real != 0)[None, :]
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    return tl.where(allowed, scores, float("-inf"))


@triton.jit
def mix(
    query, k, v, mask, batch, head, start, t, ks, vs, T, S, dk, dv, window, left, right, scale,
    MASK: tl.constexpr, CHUNK: tl.constexpr, CAUSAL: tl.constexpr, TYPE: tl.constexpr,
    DK: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """What a block of queries reads, and the logarithms of their softmax sums; zeros where nothing may be read."""
    a, b = tl.arange(0, DK), tl.arange(0, DV)
    top = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    mixed = tl.zeros((BLOCK, DV), dtype=tl.float32)
    first, last = keys_of(start, T, S, window, left, right, CHUNK, CAUSAL, BLOCK)
    for at in range(first, last, KEYS):
        s = at + tl.arange(0, KEYS)
        key = tile(k, ks, batch, head, s, S, a, dk, TYPE)
        z = scores_of(query, key, mask, batch, t, s, T, S, window, left, right, scale, MASK, CHUNK, CAUSAL)
        higher = tl.maximum(top, tl.max(z, axis=1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # nothing to read so far
        p, fade = tl.exp(z - shift[:, None]), tl.exp(top - shift)
        value = tile(v, vs, batch, head, s, S, b, dv, TYPE)
        mixed = mixed * fade[:, None] + tl.dot(p.to(TYPE), value, input_precision="ieee")
        total, top = total * fade + tl.sum(p, axis=1), higher
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    return mixed / total[:, None], tl.where(empty, 0.0, top) + tl.log(total)
