"""What the bodies of several operators share. ``op`` builds nodes: ``op.Add(x, y)``."""

from __future__ import annotations

from typing import Any

RUNTIME = "com.microsoft"
ALL = ("FLOAT", "FLOAT16", "BFLOAT16")
"""The types that most of ONNX Runtime's CUDA kernels are there for."""


def runtime_kernel(op: Any, name: str, *inputs: Any, **attributes: Any) -> Any:
    """A node of ONNX Runtime's own kernels; ``_outputs`` is how many it has."""
    return getattr(op, name)(*inputs, _domain=RUNTIME, _version=1, **attributes)
