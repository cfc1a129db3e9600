"""An exported file against the eager model, in ONNX Runtime and in the reference evaluator of ``onnx``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from resfx.errors import ExportError, require
from resfx.passes.check.values import difference
from resfx.report.progress import step

from .runtime import session

# Greatest error allowed, as a part of the greatest output.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
REFERENCE_LIMIT = 2**28  # bytes of weights beyond which the reference evaluator, in plain numpy, takes minutes


@step("running {path} against the eager model")
def verify(
    path: str, inputs: Sequence[str], outputs: Sequence[str], cases: Sequence[tuple[Any, Any]], backends: Sequence[str]
) -> dict[str, float]:
    """The greatest absolute difference per backend.

    Args:
        cases: ``(inputs, expected outputs)`` as tensors.
        backends: ``"onnxruntime"`` and ``"reference"``, any of them.

    Raises:
        ExportError: naming the output that is off by more than :data:`TOLERANCE`, or what stopped the backend.
    """
    worst = dict.fromkeys(backends, 0.0)
    for backend in backends:
        try:
            run = RUNNERS[backend](path)
        except Exception as error:
            raise ExportError(
                f"{backend} cannot load the exported model", str(getattr(error, "found", error)),
                "a type without kernels on the CPU, such as bfloat16, can be held against check='reference'",
            ) from error  # fmt: skip
        for leaves, expected in cases:
            feeds = {n: leaf.detach().cpu() for n, leaf in zip(inputs, leaves, strict=True)}
            try:
                results = run(list(outputs), feeds)
            except Exception as error:
                raise ExportError(
                    f"{backend} cannot run the exported model on inputs of {_shapes(feeds)}",
                    f"{type(error).__name__}: {str(error).strip()}", "check=False writes the file all the same",
                ) from error  # fmt: skip
            for name, got, want in zip(outputs, results, expected, strict=True):
                worst[backend] = max(worst[backend], _compare(backend, name, got, want.detach().cpu(), feeds))
    return worst


def _compare(backend: str, name: str, got: torch.Tensor, want: torch.Tensor, feeds: dict[str, torch.Tensor]) -> float:
    if want.dtype is torch.bool:  # flags of a short window: booleans have no absolute value
        got, want = got.int(), want.int()
    finite = torch.isfinite(want) if want.is_floating_point() else torch.ones_like(want, dtype=torch.bool)
    allowed = TOLERANCE.get(want.dtype, 0.0) * max(1.0, float(want[finite].abs().max()) if finite.any() else 0.0)
    same_shape = got.shape == want.shape
    same_kind = same_shape and torch.equal(torch.nan_to_num(got[~finite]), torch.nan_to_num(want[~finite]))
    off = difference(got[finite], want[finite]) if same_kind else float("inf")
    if not off <= allowed:
        found = f"{tuple(got.shape)} against {tuple(want.shape)}" if not same_shape else f"{off:.3g} > {allowed:.3g}"
        raise ExportError(
            f"the exported model disagrees with the eager one in {backend}",
            f"output {name}: {found}, on inputs of {_shapes(feeds)}",
            "profile='standard' leaves fused operators open; check=False writes the file all the same",
        )  # fmt: skip
    return off


def _shapes(feeds: dict[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())


def _onnxruntime(path: str) -> Any:
    made = session(path, ["CPUExecutionProvider"], kernels=False)  # the file has to run without any library
    runtime, helper = require("onnxruntime", "onnx", "checking"), require("onnx.helper", "onnx", "checking")

    def run(names: list[str], feeds: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        wrap = runtime.OrtValue.ortvalue_from_numpy_with_onnx_type
        values = {}
        for name, value in feeds.items():
            array = to_numpy(value)
            values[name] = wrap(array, helper.np_dtype_to_tensor_dtype(array.dtype))
        return [_from_runtime(v) for v in made.run_with_ort_values(names, values)]

    return run


def _from_runtime(value: Any) -> torch.Tensor:
    if value.data_type() == "tensor(bfloat16)":
        return torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack())
    return torch.from_numpy(np.array(value.numpy()))


def _reference(path: str) -> Any:
    onnx = require("onnx", "onnx", "checking")
    evaluator = require("onnx.reference", "onnx", "checking").ReferenceEvaluator
    model = onnx.load(path)
    if len({f.name for f in model.functions}) < len(model.functions):  # it cannot tell overloads apart
        model = require("onnx.inliner", "onnx", "checking").inline_local_functions(model)
    made = evaluator(model, new_ops=[_gather_elements()])

    def run(names: list[str], feeds: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        with np.errstate(all="ignore"):
            results = made.run(names, {n: to_numpy(v) for n, v in feeds.items()})
        return [from_numpy(r) for r in results]

    return run


def _gather_elements() -> Any:
    """``GatherElements`` done right: that of ``onnx.reference`` fails on an axis of more than 32 elements."""
    base = require("onnx.reference.op_run", "onnx", "checking").OpRun

    class GatherElements(base):  # type: ignore[misc, valid-type]
        op_domain = ""

        def _run(self, data: Any, indices: Any, axis: int = 0) -> tuple[Any]:
            axis %= data.ndim
            here = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
            return (np.take_along_axis(data[here], indices, axis),)

    return GatherElements


RUNNERS = {"onnxruntime": _onnxruntime, "reference": _reference}


def to_numpy(value: torch.Tensor) -> np.ndarray:
    """A tensor as ONNX tools take it; ``bfloat16`` is a type of ``ml_dtypes`` there."""
    if value.dtype is torch.bfloat16:
        return value.contiguous().view(torch.int16).numpy().view(require("ml_dtypes", "onnx", "checking").bfloat16)
    return value.contiguous().numpy()


def from_numpy(value: Any) -> torch.Tensor:
    """A tensor from what ONNX tools give."""
    array = np.array(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def wants_reference(path: str) -> bool:
    """Whether the model beside ``path`` is small enough for the reference evaluator."""
    folder = os.path.dirname(path) or "."
    return sum(e.stat().st_size for e in os.scandir(folder) if e.is_file()) <= REFERENCE_LIMIT
