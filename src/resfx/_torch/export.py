"""What is borrowed of torch's exporters."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import torch


def guards_of(program: torch.export.ExportedProgram) -> list[str]:
    """What a trace assumed of its inputs, as Python expressions: the program checks it only on its own way."""
    return list(program._guards_code or [])


def exporter_log() -> logging.Logger:
    """Where ``torch.onnx.export`` complains of operators that it could not register."""
    return logging.getLogger("torch.onnx._internal.exporter._registration")


@contextlib.contextmanager
def own_export() -> Iterator[None]:
    """Inside, ``torch.export`` prints no graph when it fails, leaves what an export around it keeps in globals, and
    leaves oneDNN and cuDNN to all threads: by these switches of the whole process, other threads' sums round."""
    exporter: Any = importlib.import_module("torch.export._trace")
    names = ("_EXPORT_FLAGS", "_EXPORT_MODULE_HIERARCHY", "_ignore_backend_decomps")
    around = {name: getattr(exporter, name, None) for name in names}
    try:
        exporter.print = lambda *_, **__: None
        exporter._ignore_backend_decomps = contextlib.nullcontext
        yield
    finally:
        vars(exporter).pop("print", None)
        vars(exporter).update(around)
