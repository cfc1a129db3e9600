"""An ONNX Runtime session with errors that say what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from resfx.errors import ExportError, OptionError, path_of, require
from resfx.methods.options import refuse_wrong_arguments
from resfx.ops.library import built_kernels

CPU_ONLY = ("CPUExecutionProvider",)


def session(
    path: str | os.PathLike[str],
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
    *,
    kernels: bool | str | os.PathLike[str] | None = None,
    threads: int = 0,
) -> Any:
    """An ``onnxruntime.InferenceSession`` for an exported model.

    Args:
        path: the ``.onnx`` file; external data is looked for beside it.
        providers: execution providers in order of preference, as ONNX Runtime takes them. Default: CUDA where the
            installed package has it, then the CPU.
        kernels: the library of CPU kernels that ``python -m resfx kernels`` builds. ``None``: use it if it is built
            and the session runs on the CPU only; ``True``: it must be there; ``False``: function bodies; or its path.
            A library hides the bodies of all operators it has, so where it lacks a type that the model uses, ``None``
            falls back to bodies and the others raise.
        threads: threads inside an operator; 0 lets ONNX Runtime choose.

    Raises:
        MissingPackageError: if ONNX Runtime is not installed.
        OptionError: for kernels and a provider that is not the CPU: each of their nodes would be pulled to the CPU.
        ExportError: if there is no such file, it cannot be loaded, or a provider that was asked for is not in use
            (ONNX Runtime itself falls back to the CPU in silence).
    """
    runtime = require("onnxruntime", "onnx", "running an ONNX model")
    path = os.fspath(path_of(path, "cannot run a file"))
    refuse_wrong_arguments(session, providers=providers, kernels=kernels, threads=threads)
    if threads < 0:
        raise OptionError("session: threads must be at least 0", f"{threads}", "threads=0: ONNX Runtime chooses")
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
    library = _library(path, kernels, _names(asked))
    try:
        try:
            made = _made(runtime, path, asked, threads, library)
        except Exception:
            if library is None or kernels is not None:
                raise
            made = _made(runtime, path, asked, threads, None)
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


def _library(path: str, kernels: bool | str | os.PathLike[str] | None, providers: Sequence[str]) -> str | None:
    """The library to register, if any."""
    if kernels is False:
        return None
    if tuple(providers) != CPU_ONLY:
        if kernels is None:
            return None
        raise OptionError("kernels are for the CPU alone", f"providers {', '.join(providers)}",
                          f"providers={list(CPU_ONLY)}, or kernels=None")  # fmt: skip
    found = built_kernels() if kernels is None or kernels is True else kernels
    if found is not None and os.path.isfile(found):
        return os.fspath(found)
    if kernels is None:
        return None
    raise ExportError(
        f"cannot run {path} with kernels", "they are not built" if found is None else f"there is no file {found}",
        "python -m resfx kernels builds them; kernels=False runs function bodies",
    )  # fmt: skip


def _made(runtime: Any, path: str, providers: Sequence[Any], threads: int, library: str | None) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 4 if library else 3  # a fall-back to bodies is no error to print
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(library)
    try:
        return runtime.InferenceSession(path, options, providers=providers)
    except Exception as error:
        # Version 1.27 fuses x * sigmoid(x) in float64 too, and has no kernel for what it made; 1.31 runs it.
        if "QuickGelu" not in str(error):
            raise
        return runtime.InferenceSession(path, options, providers=providers, disabled_optimizers=["QuickGeluFusion"])


def _names(providers: Sequence[Any]) -> list[str]:
    return [p if isinstance(p, str) else p[0] for p in providers]
