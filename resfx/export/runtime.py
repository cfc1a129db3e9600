"""An ONNX Runtime session with errors that say what is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..errors import ExportError, require


def session(path: str | os.PathLike[str], providers: Sequence[Any] | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` for an exported model.

    Args:
        path: the ``.onnx`` file; external data is looked for beside it.
        providers: execution providers in order of preference, as ONNX Runtime takes them. Default: CUDA where the
            installed package has it, then the CPU.

    Raises:
        MissingPackageError: if ONNX Runtime is not installed.
        ExportError: if there is no such file, it cannot be loaded, or a provider that was asked for is not in use
            (ONNX Runtime itself falls back to the CPU in silence).
    """
    runtime = require("onnxruntime", "onnx", "running an ONNX model")
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ExportError(f"cannot run {path}", "there is no such file", "resfx.export.to_onnx(model, path) makes one")
    offered = runtime.get_available_providers()
    default = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in offered]
    asked = list(providers) if providers is not None else default
    unknown = [n for n in _names(asked) if n not in offered]
    if unknown:
        raise ExportError(
            f"cannot run {path} on {', '.join(unknown)}", f"this onnxruntime offers {', '.join(offered)}",
            "pip install 'resfx[onnx-gpu]' in place of onnxruntime for CUDA, or leave out providers=",
        )  # fmt: skip
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        made = runtime.InferenceSession(path, options, providers=asked)
    except Exception as error:
        raise ExportError(
            f"cannot run {path}", f"{type(error).__name__}: {str(error).strip()}",
            "export it again if the file is damaged or its external data is missing; a type that the provider has no"
            " kernel for (bfloat16 on the CPU) has to be changed before export",
        ) from error  # fmt: skip
    absent = [n for n in _names(providers or ()) if n not in made.get_providers()]
    if absent:
        raise ExportError(
            f"cannot run {path} on {', '.join(absent)}", f"the session fell back to {', '.join(made.get_providers())}",
            "check the driver and the CUDA libraries, or ask for CPUExecutionProvider",
        )  # fmt: skip
    return made


def _names(providers: Sequence[Any]) -> list[str]:
    return [p if isinstance(p, str) else p[0] for p in providers]
