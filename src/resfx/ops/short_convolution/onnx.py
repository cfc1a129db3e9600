"""A depthwise convolution over a few positions as ONNX sees it."""

from __future__ import annotations

from typing import Any

from resfx.export.operators import FusedOperator, attribute, operator_schema, output, tensor

_END = 2**62


def body(op: Any, x: Any, weight: Any, bias: Any, base: Any, *, silu: bool, kernel: int, stash_type: Any) -> Any:
    """:func:`resfx.methods.sequence.local_conv.short_convolution`, tap by tap: no transposed copy of the positions."""
    axis, total = op.Constant(value_ints=[1]), None
    weight = op.Cast(weight, to=stash_type)
    for s in range(kernel):
        end = s + 1 - kernel or _END
        part = op.Slice(x, op.Constant(value_ints=[s]), op.Constant(value_ints=[end]), axis)
        term = op.Mul(op.Cast(part, to=stash_type), op.Gather(weight, op.Constant(value_int=s), axis=1))
        total = term if total is None else op.Add(total, term)
    if bias is not None:
        total = op.Add(total, op.Cast(bias, to=stash_type))
    if silu:
        total = op.Mul(total, op.Sigmoid(total))
    mixed = op.CastLike(total, x if base is None else base)
    return mixed if base is None else op.Add(base, mixed)


OPERATOR = FusedOperator(
    torch_name="resfx::short_convolution_node",
    schema=operator_schema(
        "ShortConvolution",
        "base + act(sum_s weight[:, s] x[:, t + s] + bias): the position itself and k - 1 others, padded or kept from"
        " before.",
        inputs=[
            tensor("x", "T", "(batch, T + k - 1, d)"),
            tensor("weight", "W", "(d, k)"),
            tensor("bias", "W", "(d,)", optional=True),
            tensor("base", "T", "(batch, T, d)", optional=True),
        ],
        outputs=[output("y", "T", "(batch, T, d)")],
        attributes=[
            attribute("silu", int, "whether act is SiLU; else nothing"),
            attribute("kernel", int, "k"),
            attribute("stash_type", int, "type that the sum runs in: float for half types"),
        ],
    ),
    body=body,
    flags=("silu", "kernel"),
    derived={"kernel": lambda given: given["weight"].shape[1]},
)
