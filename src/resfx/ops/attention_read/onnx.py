"""A softmax read over depth as ONNX sees it."""

from __future__ import annotations

from typing import Any

from resfx.export.operators import FusedOperator, attribute, operator_schema, output, tensor
from resfx.ops.weighted_sum.onnx import body as weighted_sum


def body(op: Any, query: Any, base: Any, gate: Any, *sources: Any, eps: Any, relative: bool, stash_type: Any) -> Any:
    """:func:`resfx.methods.depth.base.attention_read`, step by step."""

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
    return weighted_sum(op, weights, base, *sources, stash_type=stash_type)


OPERATOR = FusedOperator(
    torch_name="resfx::attention_read",
    schema=operator_schema(
        "AttentionRead",
        "An Attention Residuals read (arXiv 2603.15031, equations 2 to 4): base + gate sum_j a_j sources[j] with"
        " a = softmax_j(query . RMSNorm(sources[j])), or with n a_j - 1 for a_j where relative.",
        inputs=[
            tensor("query", "Q", "with the gain of the norm, (d,)"),
            tensor("base", "T", "(..., d)", optional=True),
            tensor("gate", "G", "()", optional=True),
            tensor("sources", "T", "n of them, (..., d) each", many=True),
        ],
        outputs=[output("y", "T", "(..., d)")],
        attributes=[
            attribute("eps", float, "of the norm"),
            attribute("relative", int, "whether the weights are n a_j - 1"),
            attribute("stash_type", int, "type that the computation runs in: float for half types"),
        ],
    ),
    body=body,
    flags=("relative",),
)
