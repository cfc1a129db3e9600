"""A depthwise convolution over a few positions as ONNX sees it."""

from __future__ import annotations

from typing import Any

from resfx.ops.onnx import runtime_kernel

_END = 2**62


def body(op: Any, x: Any, weight: Any, bias: Any, base: Any, *, silu: bool, kernel: int, stash_type: Any) -> Any:
    """:func:`resfx.ops.short_convolution.formula.short_convolution`, tap by tap, without a transposed copy."""
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


def with_state(op: Any, x: Any, weight: Any, bias: Any, base: Any, *, silu: bool, kernel: int, **settings: Any) -> Any:
    """By ONNX Runtime's ``CausalConvWithState``, to which earlier positions are a state."""
    number = lambda n: op.Constant(value_ints=[n])
    past = op.Slice(x, number(0), number(kernel - 1), number(1))
    here = op.Slice(x, number(kernel - 1), number(_END), number(1))
    weight = op.Unsqueeze(op.CastLike(weight, x), number(1))
    bias = None if bias is None else op.CastLike(bias, x)
    activation = "silu" if silu else "none"
    mixed, _ = runtime_kernel(
        op, "CausalConvWithState", here, weight, bias, past, channels_last=1, activation=activation, _outputs=2
    )
    return mixed if base is None else op.Add(base, mixed)


def several(node: Any) -> dict[str, int] | None:
    """Whether there is more than one tap."""
    return {} if node.attributes["kernel"].as_int() > 1 else None
