"""A weighted sum over depth as ONNX sees it."""

from __future__ import annotations

from typing import Any

from resfx.export.operators import FusedOperator, attribute, operator_schema, output, tensor


def body(op: Any, weights: Any, base: Any, *sources: Any, stash_type: Any) -> Any:
    """:func:`resfx.methods.depth.base.weighted_sum`, step by step."""
    weights, total = op.Cast(weights, to=stash_type), None
    for j, source in enumerate(sources):
        weight = op.Gather(weights, op.Constant(value_ints=[j]), axis=-1)
        term = op.Mul(weight, op.Cast(source, to=stash_type))
        total = term if total is None else op.Add(total, term)
    if base is None:
        return op.CastLike(total, sources[0])
    return op.Add(base, op.CastLike(total, base))


OPERATOR = FusedOperator(
    torch_name="resfx::weighted_sum",
    schema=operator_schema(
        "WeightedSum",
        "A weighted average over depth (DenseFormer, arXiv 2402.02622, and others): base + sum_j weights[..., j]"
        " sources[j].",
        inputs=[
            tensor("weights", "W", "of n sources, (n,) or (..., n)"),
            tensor("base", "T", "(..., d)", optional=True),
            tensor("sources", "T", "(..., d) each", many=True),
        ],
        outputs=[output("y", "T", "(..., d)")],
        attributes=[attribute("stash_type", int, "type that the sum runs in: float for half types")],
    ),
    body=body,
)
