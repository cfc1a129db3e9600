"""Fused operators by kernels that ONNX Runtime has itself: bodies for ``profile="ort-cuda"``.

A node keeps its name; where a built-in kernel does its work on CUDA in the node's type, its body calls that kernel, in
the domain ``com.microsoft``, else it has the standard body. Which kernels there are, since when and for which types,
the operators' records say, from the runtime's own tables (1.31).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resfx.errors import ExportError, require
from resfx.ops.record import Builtin, operators


def builtin_for(node: Any) -> tuple[Builtin, Mapping[str, int]] | None:
    """The kernel for a fused node on CUDA, and what its body needs to know; ``None`` for the standard body.

    Raises:
        ExportError: if the installed ONNX Runtime is older than the kernel.
    """
    builtin = _builtin_of(node)
    kind = node.inputs[0].dtype
    if builtin is None or kind is None or kind.name not in builtin.cuda:
        return None
    static = builtin.fits(node)
    if static is None:
        return None
    here = installed()
    if here[:2] < builtin.since:
        raise ExportError(
            f"cannot lower {node.op_type} to {builtin.name} with profile='ort-cuda'",
            f"onnxruntime {'.'.join(map(str, here))} is installed, and {builtin.name} is there since"
            f" {'.'.join(map(str, builtin.since))}",
            "pip install -U onnxruntime-gpu, or profile='portable', whose bodies any release runs",
        )
    return builtin, static


def installed() -> tuple[int, ...]:
    """The release of ONNX Runtime."""
    version = require("onnxruntime", "onnx-gpu", "profile='ort-cuda'").__version__
    return tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())


def runs_on_cpu(node: Any) -> bool:
    """Whether the CPU provider has the chosen kernel too, in the node's type."""
    builtin = _builtin_of(node)
    return builtin is not None and node.inputs[0].dtype.name in builtin.cpu


def _builtin_of(node: Any) -> Builtin | None:
    record = operators().get((node.domain, node.op_type))
    return None if record is None else record.builtin
