"""The records of the operators on a state of n channels, ``(..., n, d)``."""

from __future__ import annotations

from resfx.ops.onnx import ALL
from resfx.ops.record import Attribute, Builtin, Joined, Operator, Port, stash_type

from .onnx import combine_body, delta_body, matrix_rank, mix_body, post_mix, pre_mix

RECORDS = (
    Operator(
        name="CombineChannels",
        torch_name="resfx::combine_channels",
        doc="Channels to one vector, sum_j w_j X_j. With centred the weights sum to unit but for an excess, and the sum"
        " is (1 + excess) X_0 + sum_j w_j (X_j - X_0): equal channels give themselves where it is zero.",
        inputs=(
            Port("state", "T", "(..., n, d)"),
            Port("weights", "W", "(..., n, 1), (n, 1) or (n, d)"),
            Port("unit", "U", "what the weights sum to, 1 by default: a number, (1,), (..., 1) or (d,)", optional=True),
        ),
        output=Port("y", "T", "(..., d)"),
        attributes=(Attribute("centred", int, "whether to take differences"), stash_type()),
        body=combine_body,
        flags=("centred",),
        builtin=Builtin("HyperConnectionPreMix", (1, 31), ALL, ALL, pre_mix),
        kernel="combine_channels",
    ),
    Operator(
        name="MixChannels",
        torch_name="resfx::mix_channels",
        doc="Hyper-Connections write (arXiv 2409.19606, equation 5; 2512.24880, equation 3): M X + w f. With unit the"
        " rows of M sum to one and the mix is X_0 + M (X - X_0).",
        inputs=(
            Port("state", "T", "X, (..., n, d)"),
            Port("f", "T", "branch output, (..., d)"),
            Port("write", "W", "w, (..., n) or (n,)"),
            Port("matrix", "M", "row: to, column: from; (..., n, n) or (n, n)", optional=True),
        ),
        output=Port("y", "T", "(..., n, d)"),
        attributes=(Attribute("unit", int, "whether rows of the matrix sum to one"), stash_type()),
        body=mix_body,
        flags=("unit",),
        builtin=Builtin("HyperConnectionPostMix", (1, 31), ALL, ALL, post_mix, matrix_rank),
        kernel="mix_channels",
    ),
    Operator(
        name="DeltaWrite",
        torch_name="resfx::delta_write",
        doc="The delta shortcut on every channel with one gate and one direction (arXiv 2601.00417, section 4): with"
        " k = f / sqrt(|f|^2 + eps2), X_j + beta (v_j - k.X_j) k, or, with add, X_j + f + that; see DeltaShortcut"
        " for mix. Without erase k.X_j is left out.",
        inputs=(
            Port("state", "T", "X, (..., n, d)"),
            Port("f", "T", "branch output, (..., d)"),
            Port("beta", "G", "gate, (..., 1)"),
            Port("v", "G", "targets, (..., n)"),
            Port("mix", "M", "interpolation, (), (1,) or (d,)", optional=True),
        ),
        output=Port("y", "T", "(..., n, d)"),
        attributes=(
            Attribute("eps2", float, "added to the squared norm of f"),
            Attribute("add", int, "whether f is added to every channel"),
            Attribute("erase", int, "whether what the state holds along f is taken off"),
            stash_type(),
        ),
        body=delta_body,
        flags=("add", "erase"),
        kernel="delta_write",
    ),
)

JOINED = (Joined("ManifoldRead", "TTnnnn?n?", ("eps",), ("iterations", "newton"), "manifold_read"),)
"""The coefficients of an add and its read at once, see :func:`resfx.ops.channels.manifold.manifold_read`."""
