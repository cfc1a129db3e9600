"""A weighted sum over depth as ONNX sees it."""

from __future__ import annotations

from typing import Any


def body(op: Any, weights: Any, base: Any, *sources: Any, stash_type: Any) -> Any:
    """:func:`resfx.ops.weighted_sum.formula.weighted_sum`, step by step."""
    weights, total = op.Cast(weights, to=stash_type), None
    for j, source in enumerate(sources):
        weight = op.Gather(weights, op.Constant(value_ints=[j]), axis=-1)
        term = op.Mul(weight, op.Cast(source, to=stash_type))
        total = term if total is None else op.Add(total, term)
    if base is None:
        return op.CastLike(total, sources[0])
    return op.Add(base, op.CastLike(total, base))
