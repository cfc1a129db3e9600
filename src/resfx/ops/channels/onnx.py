"""Operators on a state of n channels, ``(..., n, d)``, as ONNX sees them."""

from __future__ import annotations

from typing import Any

from resfx.export.operators import FusedOperator, attribute, operator_schema, output, tensor

_STASH = ("stash_type", int, "type that the computation runs in: float for half types")


def combine_body(op: Any, state: Any, weights: Any, unit: Any, *, centred: bool, stash_type: Any) -> Any:
    """:func:`resfx.ops.channels.formula.combine`, step by step."""
    over, x, w = op.Constant(value_ints=[-2]), op.Cast(state, to=stash_type), op.Cast(weights, to=stash_type)
    if not centred:
        return op.CastLike(op.ReduceSum(op.Mul(x, w), over, keepdims=0), state)
    first = op.Gather(x, op.Constant(value_int=0), axis=-2)
    one = op.Constant(value_float=1.0) if unit is None else unit
    excess = op.Sub(op.ReduceSum(w, over, keepdims=0), op.Cast(one, to=stash_type))
    rest = op.ReduceSum(op.Mul(op.Sub(x, op.Unsqueeze(first, over)), w), over, keepdims=0)
    return op.CastLike(op.Add(op.Add(first, op.Mul(excess, first)), rest), state)


def mix_body(op: Any, state: Any, f: Any, write: Any, matrix: Any, *, unit: bool, stash_type: Any) -> Any:
    """:func:`resfx.ops.channels.formula.mix`, step by step."""
    over, last = op.Constant(value_ints=[-2]), op.Constant(value_ints=[-1])
    x = op.Cast(state, to=stash_type)
    if matrix is not None:
        m = op.Cast(matrix, to=stash_type)
        if unit:
            first = op.Gather(x, op.Constant(value_ints=[0]), axis=-2)
            x = op.Add(first, op.MatMul(m, op.Sub(x, first)))
        else:
            x = op.MatMul(m, x)
    written = op.Mul(op.Unsqueeze(op.Cast(write, to=stash_type), last), op.Unsqueeze(op.Cast(f, to=stash_type), over))
    return op.CastLike(op.Add(x, written), state)


def delta_body(
    op: Any, state: Any, f: Any, beta: Any, v: Any, mix: Any, *, eps2: Any, add: bool, erase: bool, stash_type: Any
) -> Any:
    """:func:`resfx.ops.channels.formula.delta_write`, step by step."""

    def wide(value: Any) -> Any:
        return op.Cast(value, to=stash_type)

    over, last = op.Constant(value_ints=[-2]), op.Constant(value_ints=[-1])
    x, fw = wide(state), op.Unsqueeze(wide(f), over)
    squares = op.ReduceSum(op.Mul(fw, fw), last, keepdims=1)
    scale = op.Reciprocal(op.Sqrt(op.Add(squares, wide(op.Constant(value_float=eps2)))))
    change = op.Unsqueeze(wide(v), last)
    if erase:
        change = op.Sub(change, op.Mul(op.ReduceSum(op.Mul(fw, x), last, keepdims=1), scale))
    weight = op.Mul(op.Mul(op.Unsqueeze(wide(beta), last), change), scale)
    if mix is not None:
        weight = op.Mul(wide(mix), op.Sub(weight, wide(op.Constant(value_float=1.0))))
    return op.CastLike(op.Add(op.Add(x, fw) if add else x, op.Mul(weight, fw)), state)


OPERATOR = [
    FusedOperator(
        torch_name="resfx::combine_channels",
        schema=operator_schema(
            "CombineChannels",
            "Channels to one vector, sum_j w_j X_j. With centred the weights sum to unit but for an excess, and the sum"
            " is (1 + excess) X_0 + sum_j w_j (X_j - X_0): equal channels give themselves where it is zero.",
            inputs=[
                tensor("state", "T", "(..., n, d)"),
                tensor("weights", "W", "(..., n, 1), (n, 1) or (n, d)"),
                tensor("unit", "U", "what the weights sum to, 1 by default: a number, (1,), (..., 1) or (d,)", True),
            ],
            outputs=[output("y", "T", "(..., d)")],
            attributes=[
                attribute("centred", int, "whether to take differences"),
                attribute(*_STASH),
            ],
        ),
        body=combine_body,
        flags=("centred",),
    ),
    FusedOperator(
        torch_name="resfx::mix_channels",
        schema=operator_schema(
            "MixChannels",
            "Hyper-Connections write (arXiv 2409.19606, equation 5; 2512.24880, equation 3): M X + w f. With unit the"
            " rows of M sum to one and the mix is X_0 + M (X - X_0).",
            inputs=[
                tensor("state", "T", "X, (..., n, d)"),
                tensor("f", "T", "branch output, (..., d)"),
                tensor("write", "W", "w, (..., n) or (n,)"),
                tensor("matrix", "M", "row: to, column: from; (..., n, n) or (n, n)", optional=True),
            ],
            outputs=[output("y", "T", "(..., n, d)")],
            attributes=[attribute("unit", int, "whether rows of the matrix sum to one"), attribute(*_STASH)],
        ),
        body=mix_body,
        flags=("unit",),
    ),
    FusedOperator(
        torch_name="resfx::delta_write",
        schema=operator_schema(
            "DeltaWrite",
            "The delta shortcut on every channel with one gate and one direction (arXiv 2601.00417, section 4): with"
            " k = f / sqrt(|f|^2 + eps2), X_j + beta (v_j - k.X_j) k, or, with add, X_j + f + that; see DeltaShortcut"
            " for mix. Without erase k.X_j is left out.",
            inputs=[
                tensor("state", "T", "X, (..., n, d)"),
                tensor("f", "T", "branch output, (..., d)"),
                tensor("beta", "G", "gate, (..., 1)"),
                tensor("v", "G", "targets, (..., n)"),
                tensor("mix", "M", "interpolation, () or (d,)", optional=True),
            ],
            outputs=[output("y", "T", "(..., n, d)")],
            attributes=[
                attribute("eps2", float, "added to the squared norm of f"),
                attribute("add", int, "whether f is added to every channel"),
                attribute("erase", int, "whether what the state holds along f is taken off"),
                attribute(*_STASH),
            ],
        ),
        body=delta_body,
        flags=("add", "erase"),
    ),
]
