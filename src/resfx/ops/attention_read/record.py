"""The record of the softmax read over depth."""

from __future__ import annotations

from resfx.ops.record import Attribute, Joined, Operator, Port, stash_type

from .onnx import body

RECORDS = (
    Operator(
        name="AttentionRead",
        torch_name="resfx::attention_read",
        doc="An Attention Residuals read (arXiv 2603.15031, equations 2 to 4): base + gate sum_j a_j sources[j] with"
        " a = softmax_j(query . RMSNorm(sources[j])), or with n a_j - 1 for a_j where relative.",
        inputs=(
            Port("query", "Q", "with the gain of the norm, (d,)"),
            Port("base", "T", "(..., d)", optional=True),
            Port("gate", "G", "() or (1,)", optional=True),
            Port("sources", "T", "n of them, (..., d) each", many=True),
        ),
        output=Port("y", "T", "(..., d)"),
        attributes=(
            Attribute("eps", float, "of the norm"),
            Attribute("relative", int, "whether the weights are n a_j - 1"),
            stash_type(),
        ),
        body=body,
        flags=("relative",),
        kernel="attention_read",
    ),
)

JOINED = (Joined("GainedRead", "nT?nT*", ("eps",), ("relative",), "gained_read"),)
"""With the gain of the norm, see :func:`resfx.ops.attention_read.gained.gained_read`."""
