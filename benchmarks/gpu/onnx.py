"""ONNX Runtime on CUDA: plain nodes, bodies of standard operators, and the runtime's own kernels (``ort-cuda``)."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .record import Writer
from .settings import Settings

FORMS = (("plain nodes", "standard", False), ("body", "portable", False), ("ort-cuda", "ort-cuda", False))


def operators(writer: Writer, settings: Settings) -> None:
    """Every operator with a record, results held against the plain nodes; a row for all of them."""
    _run("operators", writer, settings)


def models(writer: Writer, settings: Settings) -> None:
    """GPT-2 of twelve layers with some methods; a row for all of them."""
    _run("models", writer, settings)


def _run(kind: str, writer: Writer, settings: Settings) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401

        from benchmarks import onnxruntime as bench

        if kind == "models":
            import transformers  # noqa: F401
    except ImportError as error:
        writer.record.note = f"not run: {error}"
        return
    provider = "CPUExecutionProvider" if settings.dry else "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        writer.record.note = f"not run: onnxruntime {onnxruntime.__version__} is installed without CUDA"
        return

    def rows() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            options = SimpleNamespace(device="cpu", threads=2, rounds=settings.rounds, full=False, library=None,
                                      folder=Path(folder), provider=provider, forms=FORMS, lenient=True,
                                      rows=16 if settings.dry else 4096)  # fmt: skip
            found = bench.GROUPS[kind](options)
            return {"rows": [{**row, "onnxruntime": onnxruntime.__version__, "provider": provider}
                             for row in (itertools.islice(found, len(FORMS)) if settings.dry else found)]}  # fmt: skip

    writer.once("all", rows)
