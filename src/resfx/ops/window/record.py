"""The records of attention over a short window, and of its last row alone."""

from __future__ import annotations

from resfx.ops.record import Attribute, Builtin, Operator, Port, stash_type

from .onnx import body, group_query, grouped_heads, row_body

RECORDS = (
    Operator(
        name="WindowedAttention",
        torch_name="resfx::windowed_attention_node",
        doc="Softmax attention of position t over t - w + 1 .. t (causal) or t - w // 2 .. t + (w - 1) // 2; with chunk"
        " over w (t // w) .. t, or its whole chunk. S > T: the queries are the last T of S positions. A query that may"
        " read nothing gets zeros.",
        inputs=(
            Port("q", "T", "(batch, heads, T, d_k)"),
            Port("k", "T", "(batch, heads_k, S, d_k); heads_k divides heads"),
            Port("v", "T", "(batch, heads_k, S, d_v)"),
            Port("mask", "I", "which positions may be read, (batch, S) or (S,)", optional=True),
        ),
        output=Port("y", "T", "(batch, heads, T, d_v)"),
        attributes=(
            Attribute("window", int, "positions read, w"),
            Attribute("causal", int, "whether no later position is read"),
            Attribute("chunk", int, "whether the window is the position's chunk"),
            Attribute("scale", float, "factor of the scores; 0 for 1 / sqrt(d_k)"),
            stash_type("softmax runs"),
        ),
        body=body,
        flags=("window", "causal", "chunk"),
        builtin=Builtin(
            "GroupQueryAttention", (1, 24), ("FLOAT16", "BFLOAT16"), ("FLOAT", "FLOAT16"), group_query, grouped_heads
        ),
        kernel="windowed_attention",
    ),
    Operator(
        name="WindowedAttentionRow",
        torch_name="resfx::windowed_attention_row_node",
        doc="Softmax attention of one query over n positions for every token: the depth read of Residual Stream Duality"
        " (arXiv 2603.16039, section 2.2).",
        inputs=(
            Port("q", "T", "(..., heads, d_k)"),
            Port("positions", "T", "n keys (..., heads, d_k), then n values (..., heads, d_v)", many=True),
        ),
        output=Port("y", "T", "(..., heads, d_v)"),
        attributes=(
            Attribute("scale", float, "factor of the scores; 0 for 1 / sqrt(d_k)"),
            stash_type("softmax and the sums run"),
        ),
        body=row_body,
        kernel="windowed_attention_row",
    ),
)
