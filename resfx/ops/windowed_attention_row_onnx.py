"""One row of a windowed attention, its positions a list, as ONNX sees it."""

from __future__ import annotations

from typing import Any

from ..export.operators import FusedOperator, attribute, operator_schema, output, tensor
from .weighted_sum_onnx import body as weighted_sum
from .windowed_attention_onnx import factor


def body(op: Any, q: Any, *positions: Any, scale: Any, stash_type: Any) -> Any:
    """:func:`resfx.ops.window.windowed_attention_row`, step by step."""
    last, query = op.Constant(value_ints=[-1]), op.Cast(q, to=stash_type)
    keys, values = positions[: len(positions) // 2], positions[len(positions) // 2 :]
    scores = [op.ReduceSum(op.Mul(query, op.Cast(k, to=stash_type)), last, keepdims=1) for k in keys]
    scaled = op.Mul(op.Concat(*scores, axis=-1), factor(op, q, scale, stash_type))
    return weighted_sum(op, op.Softmax(scaled, axis=-1), None, *values, stash_type=stash_type)


OPERATOR = FusedOperator(
    torch_name="resfx::windowed_attention_row_node",
    schema=operator_schema(
        "WindowedAttentionRow",
        "Softmax attention of one query over n positions for every token: the depth read of Residual Stream Duality"
        " (arXiv 2603.16039, section 2.2).",
        inputs=[
            tensor("q", "T", "(..., heads, d_k)"),
            tensor("positions", "T", "n keys (..., heads, d_k), then n values (..., heads, d_v)", many=True),
        ],
        outputs=[output("y", "T", "(..., heads, d_v)")],
        attributes=[
            attribute("scale", float, "factor of the scores; 0 for 1 / sqrt(d_k)"),
            attribute("stash_type", int, "type that softmax and sums run in: float for half types"),
        ],
    ),
    body=body,
)
