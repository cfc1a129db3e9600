"""A softmax read over depth as ONNX sees it."""

from __future__ import annotations

from typing import Any

from resfx.ops.weighted_sum.onnx import body as weighted_sum_body


def body(op: Any, query: Any, base: Any, gate: Any, *sources: Any, eps: Any, relative: bool, stash_type: Any) -> Any:
    """:func:`resfx.ops.attention_read.formula.attention_read`, step by step."""

    def wide(value: Any) -> Any:
        return op.Cast(value, to=stash_type)

    last, query = op.Constant(value_ints=[-1]), wide(query)
    scores = []
    for source in sources:
        s = wide(source)
        mean = op.Add(op.ReduceMean(op.Mul(s, s), last, keepdims=1), wide(op.Constant(value_float=eps)))
        scores.append(op.Mul(op.ReduceSum(op.Mul(s, query), last, keepdims=1), op.Reciprocal(op.Sqrt(mean))))
    logits = op.Concat(*scores, axis=-1)
    if relative:  # exactly 1 where all are equal
        e = op.Exp(op.Sub(logits, op.ReduceMax(logits, last, keepdims=1)))
        weights = op.Div(
            op.Mul(e, wide(op.Constant(value_float=float(len(sources))))), op.ReduceSum(e, last, keepdims=1)
        )
        weights = op.Sub(weights, wide(op.Constant(value_float=1.0)))
    else:
        weights = op.Softmax(logits, axis=-1)
    if gate is not None:
        weights = op.Mul(weights, wide(gate))
    return weighted_sum_body(op, weights, base, *sources, stash_type=stash_type)
