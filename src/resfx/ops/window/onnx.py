"""Attention over a short window as ONNX sees it: nothing in its body has the size T x T."""

from __future__ import annotations

from typing import Any

import numpy as np

from resfx.ops.onnx import runtime_kernel
from resfx.ops.weighted_sum.onnx import body as weighted_sum_body

from .formula import SMALLEST_BLOCK, reach

_END = 2**62


def body(
    op: Any, q: Any, k: Any, v: Any, mask: Any, *, window: int, causal: bool, chunk: bool, scale: Any, stash_type: Any
) -> Any:
    """:func:`resfx.ops.window.formula.windowed_attention` by blocks of queries, each against its own block of keys and
    the next of keys moved back by the window's reach; chunks are blocks and see themselves alone."""
    left = 0 if chunk else reach(window, causal)[0]
    block = window if chunk else max(window, SMALLEST_BLOCK)
    sized = lambda x, axis: op.Shape(x, start=axis, end=axis + 1)
    number = lambda *n: op.Constant(value_ints=list(n))
    size, length = sized(q, 2), sized(k, 2)
    count = op.Div(op.Add(size, number(block - 1)), number(block))
    blocks = count if chunk else op.Add(count, number(1))
    past = op.Sub(length, size)
    start, front = op.Max(op.Sub(past, number(left)), number(0)), op.Max(op.Sub(number(left), past), number(0))
    tail = op.Sub(op.Mul(blocks, number(block)), op.Add(front, op.Sub(length, start)))

    def placed(x: Any, axis: int) -> Any:
        """The positions that any query reads, padded to blocks."""
        x = op.Slice(x, start, number(_END), number(axis))
        return op.Pad(x, op.Concat(front, tail, axis=0), None, number(axis))

    def paired(x: Any, axis: int) -> Any:
        """Of blocks along an axis, each beside the next one along the axis after it."""
        if chunk:
            return x
        mine, other = (
            op.Slice(x, number(0), number(-1), number(axis)),
            op.Slice(x, number(1), number(_END), number(axis)),
        )
        return op.Concat(mine, other, axis=axis + 1)

    def keys(x: Any) -> Any:  # (batch, heads_k, 1, blocks, span, d)
        x = placed(x, 2)
        shape = op.Concat(number(0, 0), blocks, number(block), sized(x, 3), axis=0)
        return op.Unsqueeze(paired(op.Reshape(x, shape), 2), number(2))

    filled = op.Pad(q, op.Concat(number(0), op.Sub(op.Mul(count, number(block)), size), axis=0), None, number(2))
    grouped = op.Concat(number(0), sized(k, 1), number(-1), count, number(block), sized(q, 3), axis=0)
    queries = op.Reshape(filled, grouped)  # (batch, heads_k, heads / heads_k, blocks, block, d_k)
    if mask is None:
        readable = op.Expand(number(1), op.Concat(number(1), length, axis=0))
    else:  # (batch, S)
        readable = op.Reshape(op.Cast(mask, to=7), op.Concat(number(-1), length, axis=0))
    readable = op.Reshape(placed(readable, 1), op.Concat(number(0), blocks, number(block), axis=0))
    readable = op.Cast(op.Unsqueeze(paired(readable, 1), number(1, 2, 4)), to=9)
    allowed = op.And(readable, op.Constant(value=_band(window, block, causal, chunk)))
    scores = op.Cast(op.MatMul(queries, op.Transpose(keys(k), perm=[0, 1, 2, 3, 5, 4])), to=stash_type)
    scores = op.Mul(scores, factor(op, q, scale, stash_type))
    none = op.Cast(op.Constant(value_float=float(np.finfo(np.float32).min)), to=stash_type)
    zero = op.Cast(op.Constant(value_float=0.0), to=stash_type)
    weights = op.Where(allowed, op.Softmax(op.Where(allowed, scores, none), axis=-1), zero)
    read = op.MatMul(op.CastLike(weights, v), keys(v))
    merged = op.Reshape(read, op.Concat(number(0), sized(q, 1), number(-1), sized(v, 3), axis=0))
    return op.Slice(merged, number(0), size, number(2))


def factor(op: Any, q: Any, scale: Any, stash_type: Any) -> Any:
    """The factor of the scores. Attributes are float32, so the usual one is computed in the wide type: zero asks for
    it."""
    width = op.Cast(op.Shape(q, start=-1), to=stash_type)
    given = op.Cast(op.Constant(value_float=scale), to=stash_type)
    zero = op.Cast(op.Constant(value_float=0.0), to=stash_type)
    return op.Where(op.Equal(given, zero), op.Reciprocal(op.Sqrt(width)), given)


def _band(window: int, block: int, causal: bool, chunk: bool) -> Any:
    import onnx_ir as ir

    if chunk:
        band = np.ones((window, window), bool)
        return ir.tensor(np.tril(band) if causal else band)
    offset = np.arange(2 * block) - np.arange(block)[:, None]
    return ir.tensor((offset >= 0) & (offset < window))


def row_body(op: Any, q: Any, *positions: Any, scale: Any, stash_type: Any) -> Any:
    """:func:`resfx.ops.window.formula.windowed_attention_row`, step by step."""
    last, query = op.Constant(value_ints=[-1]), op.Cast(q, to=stash_type)
    keys, values = positions[: len(positions) // 2], positions[len(positions) // 2 :]
    scores = [op.ReduceSum(op.Mul(query, op.Cast(k, to=stash_type)), last, keepdims=1) for k in keys]
    scaled = op.Mul(op.Concat(*scores, axis=-1), factor(op, q, scale, stash_type))
    return weighted_sum_body(op, op.Softmax(scaled, axis=-1), None, *values, stash_type=stash_type)


def group_query(
    op: Any, q: Any, k: Any, v: Any, mask: Any, *, window: int, scale: Any, heads: int, shared: int, width: int,
    **settings: Any,
) -> Any:  # fmt: skip
    """By ONNX Runtime's ``GroupQueryAttention``, which takes heads side by side and the rows' lengths."""

    def rows(x: Any, count: int) -> Any:  # (batch, heads, T, width) to (batch, T, heads * width)
        shape = op.Constant(value_ints=[0, 0, count * width])
        return op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), shape)

    size = op.Shape(q, start=2, end=3)
    last = op.Cast(op.Sub(size, op.Constant(value_ints=[1])), to=6)
    lengths = op.Expand(last, op.Shape(q, start=0, end=1))
    total = op.Squeeze(op.Cast(size, to=6))
    read = runtime_kernel(
        op, "GroupQueryAttention", rows(q, heads), rows(k, shared), rows(v, shared), None, None, lengths, total,
        num_heads=heads, kv_num_heads=shared, local_window_size=window, scale=scale,
    )  # fmt: skip
    return op.Transpose(op.Reshape(read, op.Constant(value_ints=[0, 0, heads, width])), perm=[0, 2, 1, 3])


def grouped_heads(node: Any) -> dict[str, int] | None:
    """Heads and their width, of causal windows without a mask and with as many keys as queries."""
    q, k, v, mask = node.inputs
    settings = {name: node.attributes[name].as_int() for name in ("causal", "chunk")}
    if mask is not None or settings != {"causal": 1, "chunk": 0} or any(x.shape is None for x in (q, k, v)):
        return None
    heads, shared, width = q.shape[1], k.shape[1], q.shape[3]
    if q.shape[2] != k.shape[2] or v.shape[3] != width or not all(isinstance(n, int) for n in (heads, shared, width)):
        return None
    return {"heads": heads, "shared": shared, "width": width} if width % 8 == 0 else None
