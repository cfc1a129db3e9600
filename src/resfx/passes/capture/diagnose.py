"""Why a model could not be captured, in words a user can act on: what it raises itself, or what stops a trace."""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from resfx._torch import own_export
from resfx.errors import ModelError, ResfxError

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)

SIZE_AS_KEY = "a size as the key of a dict or of a cached function"

# (pattern in the error, class of failure, remedy)
_CAUSES = (
    (r"TorchScript has no Python code", "a module of TorchScript that adds to a stream",
     "put the Python module that it was scripted from in its place"),
    (r"unhashable type: .*SymInt", SIZE_AS_KEY, "keep such a table in a submodule of its own"),
    (r"functorch tensor|functorch transforms|torch\.func\.|does not require grad and does not have a grad_fn"
     r"|derivative of this function|One of the differentiated Tensors|Trying to use a function from .*autograd",
     "a gradient that the model takes of itself, or a transform of torch.func",
     "rewrite the module that is differentiated, and put the result in its place"),
    (r"fake tensor in the exported program constant",
     "a tensor that a trace cannot keep: one that the model computed in an earlier call and put into a table of its"
     " own, or a gradient that it takes of itself",
     "make the table in __init__; rewrite the module that is differentiated, and put the result in its place"),
    (r"expected to contain only concrete integers|\bgenerator\b.*(SymInt|meta|fake)",
     "random numbers of a torch.Generator of the model's own", "draw them in a submodule that adds to no stream"),
    (r"data-dependent|GuardOnDataDependent|Could not guard|unbacked", "control flow that depends on tensor values",
     "replace the branch by torch.where or torch.cond, or pass the value it depends on as a Python constant"),
    (r"on the same device|FakeTensorDeviceMismatch", "inputs and parameters on different devices",
     "move the inputs to the model's device"),
    (r"numpy|can't convert|\.numpy\(\)|__array__", "a computation that leaves torch for numpy",
     "compute it with torch operators, or outside forward and pass it in"),
    (r"item\(\)|aten\._local_scalar_dense", "a Python number read from a tensor (.item(), int(tensor), bool(tensor))",
     "keep it a tensor, or pass it as a Python constant"),
    (r"Cannot construct .*fake|Unsupported.*operator|NotImplementedError.*meta|no fake impl|fake tensor",
     "an operator without a shape function",
     "register one with torch.library.register_fake"),
    (r"mutat|inplace", "a mutation that the tracer cannot express", "return the new value instead of writing in place"),
)  # fmt: skip

# (pattern in what a model raises by itself, remedy)
_MISTAKES = (
    (r"on the (same|expected) device|device type .* got|Expected .* on (cpu|cuda|device)|Placeholder storage",
     "move the inputs to the model's device: x.to(next(model.parameters()).device)"),
    (r"tensor for argument #1 'indices'|scalar types? Long", "ids are whole numbers: pass ids.long()"),
    (r"same dtype|expected (m1|mat1|scalar type)|Input type .* weight type|expected .* dtype|but found",
     "cast floating inputs to the model's type: x.to(next(model.parameters()).dtype)"),
    (r"Guard failed", "a captured program: export it with dynamic_shapes for the sizes that vary, or pass the model"),
    (r"index out of range|out of bounds",
     "ids must be smaller than the table they look up (the vocabulary, the positions)"),
    (r"shapes? cannot be multiplied|size of tensor|normalized_shape|expected .* channels|must match|dimension",
     "check the shapes of the inputs: features last, channels where the model has them"),
    (r"'(list|str|tuple|dict|int|float|ndarray)' object|must be Tensor, not|not (list|str|tuple|ndarray)",
     "pass tensors: torch.tensor(value), with a batch dimension first"),
)  # fmt: skip

_TALKERS = (
    "torch._export.non_strict_utils", "torch._export", "torch.export", "torch.fx.experimental.symbolic_shapes",
    "torch.fx.experimental.recording", "torch._subclasses.fake_tensor", "torch._dynamo",
)  # fmt: skip


def diagnose(cls: type, error: BaseException) -> tuple[str, str, str]:
    """``(asked, found, try)`` for a failed capture."""
    if isinstance(error, ResfxError):
        return error.asked, error.found, error.try_
    text = f"{type(error).__name__}: {error}"
    cause, remedy = (
        "an operation the tracer cannot follow",
        ("capture a part of the model, or pass a torch.fx.GraphModule or ExportedProgram of it"),
    )
    for pattern, kind, advice in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            cause, remedy = kind, advice
            break
    return f"cannot capture {cls.__name__}", f"{cause}{_where(error)} ({_brief(error)})", remedy


def model_error(cls: type, error: BaseException, given: Sequence[str], hint: str = "") -> ModelError:
    """The error for a model that raises by itself, without any capture.

    Args:
        given: the inputs in words.
        hint: what to do, where the caller knows better than the text of the error.
    """
    text = f"{type(error).__name__}: {error}"
    advice = next((remedy for pattern, remedy in _MISTAKES if re.search(pattern, text, re.IGNORECASE)), "")
    inputs = f"; called with {', '.join(given)}" if given else ""
    return ModelError(
        f"{cls.__name__} itself raises on these inputs", f"{_brief(error)}{_where(error)}{inputs}",
        hint or advice or "call the model on these inputs yourself until it runs, then pass them",
    )  # fmt: skip


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Inside, torch's tracer logs no advice and prints no graph of its own: what matters of it is in the error."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    mute = _Mute()  # one of our own: another thread may be tracing too
    try:
        for logger in loggers:
            logger.addFilter(mute)
        with own_export():
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(mute)


class _Mute(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _where(error: BaseException) -> str:
    frame = user_frame(error)
    return f" at {frame.filename}:{frame.lineno} in {frame.name}: {(frame.line or '').strip()}" if frame else ""


def user_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of an error that is the user's code."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith((_TORCH, _HERE)) and not f.filename.startswith("<")
    ]
    return frames[-1] if frames else None
