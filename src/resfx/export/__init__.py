"""Lowering of rewritten models to files that run elsewhere. The packages it needs are imported when it is called."""

from resfx.ops.library import build_kernels

from .lowering import Exported, to_onnx
from .runtime import session

__all__ = ["Exported", "build_kernels", "session", "to_onnx"]
