"""Operators on a state of n channels, ``(..., n, d)``, as ONNX sees them."""

from __future__ import annotations

from typing import Any

from resfx.ops.onnx import runtime_kernel


def combine_body(op: Any, state: Any, weights: Any, unit: Any, *, centred: bool, stash_type: Any) -> Any:
    """:func:`resfx.ops.channels.formula.combine`, step by step."""
    over, x, w = op.Constant(value_ints=[-2]), op.Cast(state, to=stash_type), op.Cast(weights, to=stash_type)
    if not centred:
        return op.CastLike(op.ReduceSum(op.Mul(x, w), over, keepdims=0), state)
    first = op.Gather(x, op.Constant(value_int=0), axis=-2)
    one = op.Constant(value_float=1.0) if unit is None else unit
    excess = op.Sub(op.ReduceSum(w, over, keepdims=0), op.Cast(one, to=stash_type))
    rest = op.ReduceSum(op.Mul(op.Sub(x, op.Unsqueeze(first, over)), w), over, keepdims=0)
    return op.CastLike(op.Add(op.Add(first, op.Mul(excess, first)), rest), state)


def mix_body(op: Any, state: Any, f: Any, write: Any, matrix: Any, *, unit: bool, stash_type: Any) -> Any:
    """:func:`resfx.ops.channels.formula.mix`, step by step."""
    over, last = op.Constant(value_ints=[-2]), op.Constant(value_ints=[-1])
    x = op.Cast(state, to=stash_type)
    if matrix is not None:
        m = op.Cast(matrix, to=stash_type)
        if unit:
            first = op.Gather(x, op.Constant(value_ints=[0]), axis=-2)
            x = op.Add(first, op.MatMul(m, op.Sub(x, first)))
        else:
            x = op.MatMul(m, x)
    written = op.Mul(op.Unsqueeze(op.Cast(write, to=stash_type), last), op.Unsqueeze(op.Cast(f, to=stash_type), over))
    return op.CastLike(op.Add(x, written), state)


def delta_body(
    op: Any, state: Any, f: Any, beta: Any, v: Any, mix: Any, *, eps2: Any, add: bool, erase: bool, stash_type: Any
) -> Any:
    """:func:`resfx.ops.channels.formula.delta_write`, step by step."""

    def wide(value: Any) -> Any:
        return op.Cast(value, to=stash_type)

    over, last = op.Constant(value_ints=[-2]), op.Constant(value_ints=[-1])
    x, fw = wide(state), op.Unsqueeze(wide(f), over)
    squares = op.ReduceSum(op.Mul(fw, fw), last, keepdims=1)
    scale = op.Reciprocal(op.Sqrt(op.Add(squares, wide(op.Constant(value_float=eps2)))))
    change = op.Unsqueeze(wide(v), last)
    if erase:
        change = op.Sub(change, op.Mul(op.ReduceSum(op.Mul(fw, x), last, keepdims=1), scale))
    weight = op.Mul(op.Mul(op.Unsqueeze(wide(beta), last), change), scale)
    if mix is not None:
        weight = op.Mul(wide(mix), op.Sub(weight, wide(op.Constant(value_float=1.0))))
    return op.CastLike(op.Add(op.Add(x, fw) if add else x, op.Mul(weight, fw)), state)


def pre_mix(op: Any, state: Any, weights: Any, unit: Any, **settings: Any) -> Any:
    """By ONNX Runtime's ``HyperConnectionPreMix``. What the weights sum to differs from ``unit`` by what was learned,
    and ``unit`` from one by rounding only."""
    shape = op.Concat(op.Shape(state, start=0, end=-1), op.Shape(weights, start=-1), axis=0)
    return runtime_kernel(op, "HyperConnectionPreMix", state, op.Expand(weights, shape))


def post_mix(op: Any, state: Any, f: Any, write: Any, matrix: Any, *, rank: int, **settings: Any) -> Any:
    """By ONNX Runtime's ``HyperConnectionPostMix``, whose matrix has rows for what is read."""
    if matrix is not None:
        matrix = op.Transpose(matrix, perm=[*range(rank - 2), rank - 1, rank - 2])
        leading = op.Shape(state, start=0, end=-2)
        matrix = op.Expand(matrix, op.Concat(leading, op.Shape(matrix, start=-2), axis=0))
    write = op.Expand(write, op.Shape(state, start=0, end=-1))
    return runtime_kernel(op, "HyperConnectionPostMix", state, f, write, matrix)


def matrix_rank(node: Any) -> dict[str, int] | None:
    """How many axes the matrix has."""
    matrix = node.inputs[3]
    return {"rank": 0} if matrix is None else None if matrix.shape is None else {"rank": len(matrix.shape)}
