"""Operators of other libraries that the exporter has no translation for."""

from __future__ import annotations

from typing import Any

import torch

from resfx.errors import require

# Names of one operator: of torch, and of what transformers takes where torch's own cannot be compiled.
_GROUPED_MM = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")


def translations() -> dict[Any, Any]:
    """``custom_translation_table`` of ``torch.onnx.export``, of those that are registered."""
    found = {}
    for name in _GROUPED_MM:
        namespace, operator = name.split("::")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if packet is not None:
            found[packet.default] = grouped_mm
    return found


def grouped_mm(x: Any, weight: Any, offs: Any, bias: Any = None, out_dtype: Any = None) -> Any:
    """The experts of a mixture: rows of ``x (S, d)`` lie in groups that end at ``offs (E,)``, and each group is
    multiplied with its own matrix of ``weight (E, d, f)``. One product per expert, of its own rows only.
    """
    op = require("onnxscript", "onnx", "ONNX export").opset18
    experts = weight.shape[0]
    if bias is not None or out_dtype is not None or not isinstance(experts, int):
        raise NotImplementedError("a grouped product with a bias, another type, or an unknown number of experts")
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    rows = op.Range(zero, op.Squeeze(op.Shape(x, start=0, end=1)), one)
    ends = op.Cast(offs, to=7)
    passed = op.GreaterOrEqual(
        op.Unsqueeze(rows, op.Constant(value_ints=[1])), op.Unsqueeze(ends, op.Constant(value_ints=[0]))
    )
    expert = op.ReduceSum(op.Cast(passed, to=7), op.Constant(value_ints=[1]), keepdims=0)
    parts = []
    for i in range(experts):
        number = op.Constant(value_int=i)
        own = op.Compress(x, op.Equal(expert, number), axis=0)
        parts.append(op.MatMul(own, op.Gather(weight, number, axis=0)))
    return op.Concat(*parts, axis=0)
