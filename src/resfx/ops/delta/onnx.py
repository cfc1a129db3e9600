"""The delta shortcut as ONNX sees it: the bodies of its node."""

from __future__ import annotations

from typing import Any

from resfx.ops.onnx import runtime_kernel


def body(op: Any, x: Any, f: Any, *given: Any, stash_type: Any, **settings: Any) -> Any:
    """:func:`resfx.ops.delta.formula.delta_formula`, step by step."""
    base, weight = base_and_weight(op, x, f, *given, stash_type=stash_type, **settings)
    return op.Add(base, op.CastLike(op.Mul(weight, op.Cast(f, to=stash_type)), base))


def base_and_weight(
    op: Any, x: Any, f: Any, beta: Any, v: Any, mix: Any, total: Any, *, eps2: Any, add: bool, stash_type: Any
) -> tuple[Any, Any]:
    """What ``f`` is added to, and its weight, ``(..., 1)``, or ``(..., d)`` for a mix per feature."""

    def wide(value: Any) -> Any:
        return op.Cast(value, to=stash_type)

    last = op.Constant(value_ints=[-1])
    fw = wide(f)
    squares = op.ReduceSum(op.Mul(fw, fw), last, keepdims=1)
    scale = op.Reciprocal(op.Sqrt(op.Add(squares, wide(op.Constant(value_float=eps2)))))
    p = op.Mul(op.ReduceSum(op.Mul(fw, wide(x)), last, keepdims=1), scale)
    weight = op.Mul(op.Mul(wide(beta), op.Sub(wide(v), p)), scale)
    if mix is not None:
        weight = op.Mul(wide(mix), op.Sub(weight, wide(op.Constant(value_float=1.0))))
    if not add:
        return x, weight
    return (op.Add(x, f) if total is None else total), weight


def gated_add(op: Any, x: Any, f: Any, beta: Any, v: Any, mix: Any, total: Any, **settings: Any) -> Any:
    """By ONNX Runtime's ``GatedAdd``, which takes one weight per row."""
    base, weight = base_and_weight(op, x, f, beta, v, mix, total, **settings)
    return runtime_kernel(op, "GatedAdd", base, f, op.CastLike(weight, f))


def one_mix(node: Any) -> dict[str, int] | None:
    """Whether the interpolation is one number, not one per feature."""
    mix = node.inputs[4]
    return {} if mix is None or (mix.shape is not None and tuple(mix.shape) in ((), (1,))) else None
