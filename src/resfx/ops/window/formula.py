"""Attention over a short window: the one local operator of the library, for tokens and for layers alike.

A causal read over the last layers of one token is this operator on the transposed tensor (arXiv 2603.16039,
section 2.2): nothing here knows which axis ``T`` is.

The sliding form never builds a ``T x T`` tensor: ``O(T w d)`` multiplications, and ``O(T w)`` scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from resfx._torch import is_compiling
from resfx.ops.register import accumulator, fused, keeps_one_node, one_node

SMALLEST_BLOCK = 16  # queries that share one matrix product in eager mode


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    *,
    causal: bool = True,
    chunk: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of every position over the positions of a short window.

    =============  ==========  ===================================================================================
    ``causal``     ``chunk``   position ``t`` reads
    =============  ==========  ===================================================================================
    ``True``       ``False``   ``t - w + 1 .. t``
    ``False``      ``False``   ``t - w // 2 .. t + (w - 1) // 2``: centred
    ``True``       ``True``    ``w (t // w) .. t``: its chunk so far
    ``False``      ``True``    its whole chunk
    =============  ==========  ===================================================================================

    Args:
        q: queries, ``(..., heads, T, d_k)``.
        k: keys, ``(..., heads_k, S, d_k)``; ``heads_k`` divides ``heads``. With ``S > T`` the queries are the last
            ``T`` of the ``S`` positions.
        v: values, ``(..., heads_k, S, d_v)``.
        window: positions read, ``w >= 1``; ``None`` for no limit.
        mask: ``(..., S)``, without the head axis: true where a position may be read. A query that may read
            nothing gets zeros.
        scale: factor of the scores; ``1 / sqrt(d_k)`` by default.

    Returns:
        ``(..., heads, T, d_v)`` in the type of ``v``; softmax runs in float32 for half types.

    Raises:
        ValueError: for a window below 1, a scale of 0, head counts that do not divide, keys that are not as wide as
            queries or not as many as values, fewer keys than queries, or the chunk form with more.
    """
    _validate(q, k, v, window, chunk, scale)
    if window is not None and q.dim() == 4:
        if keeps_one_node():
            return _node(q, k, v, mask, window, causal, chunk, scale or 0.0)
        if (done := _node.native(q, k, v, mask, window, causal, chunk, scale or 0.0)) is not None:
            return done
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if window is None:
        k, v = _share_heads(q, k), _share_heads(q, v)
        return attend(q, k, v, band_mask(q, k, None, causal, False, mask), scale)
    return _operator(q, k, v, mask, window, causal, chunk, scale)


def windowed_attention_formula(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, causal: bool, chunk: bool, scale: float
) -> Tensor:
    """:func:`windowed_attention` in plain torch, in the form that suits the way it runs."""
    k, v = _share_heads(q, k), _share_heads(q, v)
    eager, (left, right) = not is_compiling(), reach(window, causal)
    if eager:  # no larger than the sequence: blocks and pads grow with the window
        most = max(k.shape[-2], 1)
        window, left, right = min(window, most), min(left, most - 1), min(right, most - 1)
    if chunk:
        return _chunks(q, k, v, window, causal, mask, scale)
    form = _blocked if eager else _unfolded
    return form(q, k, v, left, right, mask, scale)


def windowed_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    *,
    causal: bool = True,
    chunk: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """:func:`windowed_attention` with a dense ``T x S`` band mask: what every other form is held against."""
    _validate(q, k, v, window, chunk, scale)
    k, v = _share_heads(q, k), _share_heads(q, v)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return attend(q, k, v, band_mask(q, k, window, causal, chunk, mask), scale)


def reach(window: int, causal: bool) -> tuple[int, int]:
    """How many positions before and after its own a query reads."""
    return (window - 1, 0) if causal else (window // 2, (window - 1) // 2)


def band_mask(q: Tensor, k: Tensor, window: int | None, causal: bool, chunk: bool, mask: Tensor | None) -> Tensor:
    """Which of ``S`` keys each of ``T`` queries may read, ``(T, S)`` or, with a mask, ``(..., 1, T, S)``."""
    size, length = q.shape[-2], k.shape[-2]
    j = torch.arange(length, device=q.device)
    i = torch.arange(size, device=q.device).unsqueeze(-1) + (length - size)
    allowed = j <= i if causal else torch.ones_like(j <= i)
    if window is not None and chunk:
        allowed = allowed & (torch.div(i, window, rounding_mode="floor") == torch.div(j, window, rounding_mode="floor"))
    elif window is not None:
        left, right = reach(window, causal)
        allowed = allowed & (j >= i - left) & (j <= i + right)
    return allowed if mask is None else allowed & mask.bool().unsqueeze(-2).unsqueeze(-2)


def _validate(q: Tensor, k: Tensor, v: Tensor, window: int | None, chunk: bool, scale: float | None) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 position, or None, not {window}")
    _refuse_zero(scale)
    if q.shape[-3] % k.shape[-3]:
        raise ValueError(f"{q.shape[-3]} query heads cannot share {k.shape[-3]} key heads")
    if chunk and window is not None and k.shape[-2] != q.shape[-2]:
        raise ValueError(f"the chunk form needs as many keys as queries, not {k.shape[-2]} and {q.shape[-2]}")
    if is_compiling():  # no guards on sizes
        return
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"keys of {k.shape[-1]} features do not fit queries of {q.shape[-1]}")
    if k.shape[-3:-1] != v.shape[-3:-1]:
        raise ValueError(f"keys and values differ in (heads, S): {tuple(k.shape[-3:-1])}, {tuple(v.shape[-3:-1])}")
    if k.shape[-2] < q.shape[-2]:
        raise ValueError(f"{k.shape[-2]} keys are fewer than {q.shape[-2]} queries")


def _refuse_zero(scale: float | None) -> None:
    if scale == 0:  # the node writes its default so
        raise ValueError("a scale of 0 reads nothing of the scores; None is 1 / sqrt(d_k)")


def _share_heads(q: Tensor, k: Tensor) -> Tensor:
    groups = q.shape[-3] // k.shape[-3]
    return k if groups == 1 else k.repeat_interleave(groups, dim=-3)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Dense attention; ``allowed`` broadcasts to the scores ``(..., heads, T, S)``. A row that reads nothing is 0."""
    return _softmax(q @ k.transpose(-2, -1), allowed, scale).to(v.dtype) @ v


def _softmax(scores: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Weights over the last axis, zero where nothing may be read."""
    scores = scores.to(accumulator(scores.dtype)) * scale
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(~allowed, 0)


def _readable(k: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(k.shape[-2], dtype=torch.bool, device=k.device) if mask is None else mask.bool().unsqueeze(-2)


def _unfolded(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, mask: Tensor | None, scale: float) -> Tensor:
    """Window by window, reduced at once: compiled, nothing of size ``T w d`` is stored."""
    before, width = left - (k.shape[-2] - q.shape[-2]), left + right + 1
    allowed = F.pad(_readable(k, mask), (before, right)).unfold(-1, width, 1)
    keys = F.pad(k, (0, 0, before, right)).unfold(-2, width, 1)  # (..., T, d_k, w)
    values = F.pad(v, (0, 0, before, right)).unfold(-2, width, 1)
    scores = (q.unsqueeze(-1) * keys).sum(-2, dtype=accumulator(q.dtype))
    weights = _softmax(scores, allowed, scale)
    return (weights.unsqueeze(-2) * values).sum(-1).to(v.dtype)


def _blocked(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, mask: Tensor | None, scale: float) -> Tensor:
    """Blocks of queries against the keys any of them may read: two batched matrix products."""
    size, width = q.shape[-2], left + right + 1
    if size == 0:  # no block to cut
        return (q @ k.transpose(-2, -1)).to(v.dtype) @ v
    block = min(max(width, SMALLEST_BLOCK), size)
    count = -(-size // block)
    before, after = left - (k.shape[-2] - size), right + count * block - size
    span = block + left + right
    queries = F.pad(q, (0, 0, 0, count * block - size)).unflatten(-2, (count, block))
    keys = _spans(F.pad(k, (0, 0, before, after)), span, block)
    values = _spans(F.pad(v, (0, 0, before, after)), span, block)
    readable = F.pad(_readable(k, mask), (before, after)).unfold(-1, span, block).unsqueeze(-2)
    offset = torch.arange(span, device=q.device) - torch.arange(block, device=q.device).unsqueeze(-1)
    allowed = readable & (offset >= 0) & (offset < width)
    weights = _softmax(queries @ keys.transpose(-2, -1), allowed, scale).to(v.dtype)
    return (weights @ values).flatten(-3, -2)[..., :size, :]


def _spans(x: Tensor, span: int, block: int) -> Tensor:
    """``(..., blocks, span, d)``: the positions that each block of queries may read, of ``(..., length, d)``.

    A view of what overlaps is the cheapest to read, but its gradient is a scatter, slower than the attention itself:
    where gradients are recorded, each block is joined with the beginning of the next.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x.unfold(-2, span, block).transpose(-2, -1)
    count = (x.shape[-2] - span) // block + 1
    if count == 1:
        return x.unsqueeze(-3)
    blocks = F.pad(x, (0, 0, 0, 2 * block - span)).unflatten(-2, (count + 1, block))
    return torch.cat([blocks[..., :-1, :, :], blocks[..., 1:, : span - block, :]], -2)


def _chunks(q: Tensor, k: Tensor, v: Tensor, window: int, causal: bool, mask: Tensor | None, scale: float) -> Tensor:
    """Dense attention inside chunks: a block-diagonal mask, block by block."""
    size = q.shape[-2]
    count = (size + window - 1) // window
    pad = count * window - size
    q, k, v = (F.pad(x, (0, 0, 0, pad)).unflatten(-2, (count, window)) for x in (q, k, v))
    readable = torch.ones(size, dtype=torch.bool, device=q.device) if mask is None else mask.bool().unsqueeze(-2)
    allowed = F.pad(readable, (0, pad)).unflatten(-1, (count, window)).unsqueeze(-2)
    if causal:
        allowed = allowed & torch.ones(window, window, dtype=torch.bool, device=q.device).tril()
    return attend(q, k, v, allowed, scale).flatten(-3, -2)[..., :size, :]


def windowed_attention_row(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *, scale: float | None = None
) -> Tensor:
    """The last row of :func:`windowed_attention`, with the window's positions as a list: nothing is stacked.

    The form in which layers are read: every position is a tensor of its own, for all tokens at once.

    Args:
        q: the query of the last position, ``(..., heads, d_k)``.
        keys: what it may read, oldest first, each ``(..., heads, d_k)``.
        values: each ``(..., heads, d_v)``.
        scale: factor of the scores; ``1 / sqrt(d_k)`` by default.

    Returns:
        ``(..., heads, d_v)`` in the type of the values; softmax and sums run in float32 for half types.
    """
    _refuse_zero(scale)
    if keeps_one_node():
        return _row_node(q, list(keys), list(values), scale or 0.0)
    if (done := _row_node.native(q, keys, values, scale or 0.0)) is not None:
        return done
    return _row(q, keys, values, scale or 0.0)


def _row(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float) -> Tensor:
    wide = accumulator(q.dtype)
    scale = scale or 1 / math.sqrt(q.shape[-1])
    scores = [(q.to(wide) * k.to(wide)).sum(-1, keepdim=True) for k in keys]
    weights = (torch.cat(scores, -1) * scale).softmax(-1)
    total = weights[..., :1] * values[0].to(wide)
    for j in range(1, len(values)):
        total = total + weights[..., j : j + 1] * values[j].to(wide)
    return total.to(values[0].dtype)


def _by_time(y: Tensor) -> Tensor:
    """Heads next to each other in memory, ready to be merged."""
    return y.transpose(-3, -2).contiguous().transpose(-3, -2)


_operator = fused("windowed_attention", windowed_attention_formula, layout=_by_time, kernels="window.triton")


def _node_formula(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, causal: bool, chunk: bool, scale: float
) -> Tensor:
    return windowed_attention(q, k, v, window, causal=causal, chunk=chunk, mask=mask, scale=scale or None)


_node = one_node("windowed_attention_node", _node_formula, lambda q, k, v, *_: v.new_empty(*q.shape[:-1], v.shape[-1]))
_row_node = one_node("windowed_attention_row_node", _row, lambda q, keys, values, _: torch.empty_like(values[0]))
