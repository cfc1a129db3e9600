"""What all operators share: the type they accumulate in, and whether a trace keeps them as one node."""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor

_opaque: contextvars.ContextVar[bool] = contextvars.ContextVar("resfx_opaque", default=False)


@contextlib.contextmanager
def opaque_operators() -> Iterator[None]:
    """Inside, fused operators stay one node each in a traced graph: for export to runtimes that have them."""
    token = _opaque.set(True)
    try:
        yield
    finally:
        _opaque.reset(token)


def keeps_one_node() -> bool:
    """Whether to call the registered operator. Under ``torch.compile`` the open formula is the fast one."""
    return not torch.compiler.is_dynamo_compiling() and _opaque.get()


def one_node(name: str, formula: Callable[..., Tensor], result: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Register ``torch.ops.resfx.<name>``, which is there to be one node of an exported program; no gradients.

    Args:
        name: of the operator; its ONNX record is in a file ``*_onnx.py``.
        formula: plain torch, with annotations that ``torch.library.infer_schema`` reads.
        result: an empty tensor like the result, of the formula's arguments: it decides nothing by sizes, so a trace
            keeps them all open, as the formula's blocks and pads may not.
    """
    schema = torch.library.infer_schema(formula, mutates_args=())
    operator = torch.library.custom_op(
        f"resfx::{name}", lambda *args: formula(*args).contiguous(), mutates_args=(), schema=schema
    )
    operator.register_fake(result)
    return operator


def transforming() -> bool:
    """Whether a ``torch.func`` transform or forward-mode differentiation is at work: plain torch is right there."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def triton_kernels(name: str, x: Tensor) -> ModuleType | None:
    """The Triton kernels of an operator, ``_<name>_triton.py``; ``None`` where they cannot run on ``x``.

    The one place that imports Triton, when the first CUDA tensor comes.
    """
    if not x.is_cuda or importlib.util.find_spec("triton") is None:
        return None
    kernels = importlib.import_module(f"{__package__}._{name}_triton")
    return kernels if kernels.supported(x) else None


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that reductions run in: float32 for half types, else the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
