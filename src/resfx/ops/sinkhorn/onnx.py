"""Sinkhorn-Knopp as ONNX sees it."""

from __future__ import annotations

from typing import Any

import numpy as np

_RANGE, _STRIDE = 40.0, 4.0  # as in resfx.ops.sinkhorn.formula.sinkhorn_formula


def body(op: Any, logits: Any, *, iterations: int, newton: int, size: int, stash_type: Any) -> Any:
    """:func:`resfx.ops.sinkhorn.formula.sinkhorn`, unrolled."""
    x, axes = op.Cast(logits, to=stash_type), lambda *n: op.Constant(value_ints=list(n))
    number = lambda value: op.Cast(op.Constant(value_float=value), to=stash_type)
    matrix = op.Exp(op.Max(op.Sub(x, op.ReduceMax(x, axes(-2, -1), keepdims=1)), number(-_RANGE)))
    for _ in range(iterations):
        matrix = op.Div(matrix, op.ReduceSum(matrix, axes(-2), keepdims=1))
        matrix = op.Div(matrix, op.ReduceSum(matrix, axes(-1), keepdims=1))
    for _ in range(newton):
        short = op.Sub(number(1.0), op.ReduceSum(matrix, axes(-2), keepdims=0))
        step = op.Max(op.Min(_solve(op, matrix, short, size, stash_type), number(_STRIDE)), number(-_STRIDE))
        matrix = op.Mul(matrix, op.Exp(op.Unsqueeze(step, axes(-2))))
        matrix = op.Div(matrix, op.ReduceSum(matrix, axes(-1), keepdims=1))
    return op.CastLike(matrix, logits)


def _solve(op: Any, matrix: Any, right: Any, size: int, stash_type: Any) -> Any:
    """:func:`resfx.ops.sinkhorn.formula._solve`, by elimination without pivots."""
    import onnx_ir as ir

    axes, constant = lambda *n: op.Constant(value_ints=list(n)), lambda x: op.Constant(value=ir.tensor(x))
    eye = np.eye(size)
    wide = lambda x: op.Cast(constant(x), to=stash_type)
    short = lambda x, axis: op.Slice(x, axes(0), axes(-1), axes(axis))
    # The machine epsilon of the type that this runs in, which the body does not know: what 1 + it first differs by.
    epsilon = op.Sub(op.Div(wide(np.array(4.0)), wide(np.array(3.0))), wide(np.array(1.0)))
    epsilon = op.Abs(op.Sub(op.Mul(epsilon, wide(np.array(3.0))), wide(np.array(1.0))))
    coupling = op.ReduceSum(
        op.Mul(op.Unsqueeze(matrix, axes(-1)), op.Unsqueeze(matrix, axes(-2))), axes(-3), keepdims=0
    )
    coupling = op.Mul(coupling, wide(1 - eye))
    diagonal = op.Add(op.ReduceSum(coupling, axes(-1), keepdims=1), epsilon)
    left = op.Sub(op.Mul(diagonal, wide(eye)), coupling)
    table = op.Concat(short(short(left, -2), -1), op.Unsqueeze(short(right, -1), axes(-1)), axis=-1)
    for k in range(size - 1):
        row = op.Gather(table, op.Constant(value_int=k), axis=-2)
        row = op.Div(row, op.Gather(row, axes(k), axis=-1))
        factor = op.Sub(op.Gather(table, op.Constant(value_int=k), axis=-1), wide(eye[k, :-1]))
        table = op.Sub(table, op.Mul(op.Unsqueeze(factor, axes(-1)), op.Unsqueeze(row, axes(-2))))
    found = op.Gather(table, op.Constant(value_int=size - 1), axis=-1)
    last = op.Expand(wide(np.zeros(())), op.Concat(op.Shape(found, start=0, end=-1), axes(1), axis=0))
    return op.Concat(found, last, axis=-1)
