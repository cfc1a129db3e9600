"""The record of the short convolution."""

from __future__ import annotations

from resfx.ops.onnx import ALL
from resfx.ops.record import Attribute, Builtin, Operator, Port, stash_type

from .onnx import body, several, with_state

RECORDS = (
    Operator(
        name="ShortConvolution",
        torch_name="resfx::short_convolution_node",
        doc="base + act(sum_s weight[:, s] x[:, t + s] + bias): the position itself and k - 1 others, padded or kept"
        " from before.",
        inputs=(
            Port("x", "T", "(batch, T + k - 1, d)"),
            Port("weight", "W", "(d, k)"),
            Port("bias", "W", "(d,)", optional=True),
            Port("base", "T", "(batch, T, d)", optional=True),
        ),
        output=Port("y", "T", "(batch, T, d)"),
        attributes=(
            Attribute("silu", int, "whether act is SiLU; else nothing"),
            Attribute("kernel", int, "k"),
            stash_type("sum runs"),
        ),
        body=body,
        flags=("silu", "kernel"),
        derived={"kernel": lambda given: given["weight"].shape[1]},
        builtin=Builtin("CausalConvWithState", (1, 31), ALL, ("FLOAT",), with_state, several),
        kernel="short_convolution",
    ),
)
