"""The record of the delta shortcut."""

from __future__ import annotations

from resfx.ops.onnx import ALL
from resfx.ops.record import Attribute, Builtin, Joined, Operator, Port, stash_type

from .onnx import body, gated_add, one_mix

RECORDS = (
    Operator(
        name="DeltaShortcut",
        torch_name="resfx::delta_shortcut",
        doc="A residual add as a gated rank-one update (arXiv 2601.00417): with k = f / sqrt(|f|^2 + eps2) and p = k.x,"
        " base + beta (v - p) k, or base + mix (beta (v - p) k - f) where mix is given; base is x, or x + f with add"
        " (total, where given, is that sum as the host computes it).",
        inputs=(
            Port("x", "T", "stream, (..., d)"),
            Port("f", "T", "branch output, (..., d)"),
            Port("beta", "G", "gate, (..., 1)"),
            Port("v", "G", "target read-out, (..., 1)"),
            Port("mix", "M", "interpolation, (), (1,) or (d,)", optional=True),
            Port("total", "T", "x + f, (..., d)", optional=True),
        ),
        output=Port("y", "T", "the new stream, (..., d)"),
        attributes=(
            Attribute("eps2", float, "added to the squared norm of f"),
            Attribute("add", int, "whether the plain sum is the base"),
            stash_type(),
        ),
        body=body,
        flags=("add",),
        builtin=Builtin("GatedAdd", (1, 29), ALL, ("FLOAT", "FLOAT16"), gated_add, one_mix),
        kernel="delta_shortcut",
    ),
)

JOINED = (
    Joined("DeltaSite", "TTTnn?n?n?n?T?", ("eps2", "scale", "constant"), ("add", "erase", "source"), "delta_site"),
)
"""Gates and shortcut at once, see :func:`resfx.ops.delta.site.delta_site`."""
