"""Lowering of rewritten models to files that run elsewhere. The packages it needs are imported when it is called."""

from .lowering import Exported, to_onnx
from .runtime import session

__all__ = ["Exported", "session", "to_onnx"]
