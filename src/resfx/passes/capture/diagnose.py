"""Why a model could not be captured, in words a user can act on."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)

# (pattern in the error, class of failure, remedy)
_CAUSES = (
    (r"data-dependent|GuardOnDataDependent|Could not guard|unbacked", "control flow that depends on tensor values",
     "replace the branch by torch.where or torch.cond, or pass the value it depends on as a Python constant"),
    (r"numpy|can't convert|\.numpy\(\)|__array__", "a computation that leaves torch for numpy",
     "compute it with torch operators, or outside forward and pass it in"),
    (r"item\(\)|aten\._local_scalar_dense", "a Python number read from a tensor (.item(), int(tensor), bool(tensor))",
     "keep it a tensor, or pass it as a Python constant"),
    (r"Cannot construct .*fake|Unsupported.*operator|NotImplementedError.*meta|no fake impl|fake tensor",
     "an operator without a shape function",
     "register one with torch.library.register_fake"),
    (r"mutat|inplace", "a mutation that the tracer cannot express", "return the new value instead of writing in place"),
    (r"missing a required argument|unexpected keyword|takes \d+ positional|required positional",
     "arguments that do not fit forward", "pass args=/kwargs= as the model itself takes them"),
)  # fmt: skip


def diagnose(cls: type, error: BaseException) -> tuple[str, str, str]:
    """``(asked, found, try)`` for a failed capture."""
    text = f"{type(error).__name__}: {error}"
    cause, remedy = (
        "an operation the tracer cannot follow",
        ("capture a part of the model, or pass a torch.fx.GraphModule or ExportedProgram of it"),
    )
    for pattern, kind, advice in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            cause, remedy = kind, advice
            break
    frame = user_frame(error)
    where = f" at {frame.filename}:{frame.lineno} in {frame.name}: {(frame.line or '').strip()}" if frame else ""
    first = str(error).strip().splitlines()[:1]
    return f"cannot capture {cls.__name__}", f"{cause}{where} ({type(error).__name__}: {' '.join(first)})", remedy


def user_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of an error that is the user's code."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith((_TORCH, _HERE)) and not f.filename.startswith("<")
    ]
    return frames[-1] if frames else None
