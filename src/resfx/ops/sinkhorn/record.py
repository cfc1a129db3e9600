"""The record of Sinkhorn-Knopp."""

from __future__ import annotations

from resfx.ops.record import Attribute, Operator, Port, stash_type

from .onnx import body

RECORDS = (
    Operator(
        name="Sinkhorn",
        torch_name="resfx::sinkhorn",
        doc="exp(logits), none more than 40 below its matrix's largest, scaled to unit column and row sums in turn"
        " (mHC, arXiv 2512.24880, equation 9), then by Newton steps on the logarithms of the column scales.",
        inputs=(Port("logits", "T", "(..., n, n)"),),
        output=Port("y", "T", "(..., n, n)"),
        attributes=(
            Attribute("iterations", int, "rounds of columns, then rows"),
            Attribute("newton", int, "Newton steps after them"),
            Attribute("size", int, "n"),
            stash_type(),
        ),
        body=body,
        flags=("iterations", "newton", "size"),
        derived={"size": lambda given: given["logits"].shape[-1]},
        kernel="sinkhorn",
    ),
)
