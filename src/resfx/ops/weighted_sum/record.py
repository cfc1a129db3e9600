"""The record of the weighted sum over depth."""

from __future__ import annotations

from resfx.ops.record import Operator, Port, stash_type

from .onnx import body

RECORDS = (
    Operator(
        name="WeightedSum",
        torch_name="resfx::weighted_sum",
        doc="A weighted average over depth (DenseFormer, arXiv 2402.02622, and others): base + sum_j weights[..., j]"
        " sources[j].",
        inputs=(
            Port("weights", "W", "of n sources, (n,) or (..., n)"),
            Port("base", "T", "(..., d)", optional=True),
            Port("sources", "T", "(..., d) each", many=True),
        ),
        output=Port("y", "T", "(..., d)"),
        attributes=(stash_type("sum runs"),),
        body=body,
        kernel="weighted_sum",
    ),
)
