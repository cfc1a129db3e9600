"""The delta shortcut as ONNX sees it: the schema of its node and the body that runs where no kernel does."""

from __future__ import annotations

from typing import Any

from resfx.export.operators import FusedOperator, attribute, operator_schema, output, tensor


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


OPERATOR = FusedOperator(
    torch_name="resfx::delta_shortcut",
    schema=operator_schema(
        "DeltaShortcut",
        "A residual add as a gated rank-one update (arXiv 2601.00417): with k = f / sqrt(|f|^2 + eps2) and p = k.x,"
        " base + beta (v - p) k, or base + mix (beta (v - p) k - f) where mix is given; base is x, or x + f with add"
        " (total, where given, is that sum as the host computes it).",
        inputs=[
            tensor("x", "T", "stream, (..., d)"),
            tensor("f", "T", "branch output, (..., d)"),
            tensor("beta", "G", "gate, (..., 1)"),
            tensor("v", "G", "target read-out, (..., 1)"),
            tensor("mix", "M", "interpolation, () or (d,)", optional=True),
            tensor("total", "T", "x + f, (..., d)", optional=True),
        ],
        outputs=[output("y", "T", "the new stream, (..., d)")],
        attributes=[
            attribute("eps2", float, "added to the squared norm of f"),
            attribute("add", int, "whether the plain sum is the base"),
            attribute("stash_type", int, "type that the computation runs in: float for half types"),
        ],
    ),
    body=body,
    flags=("add",),
)
