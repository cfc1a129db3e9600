"""What all operators share: the type they accumulate in, and whether a trace keeps them as one node."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch

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


def transforming() -> bool:
    """Whether a ``torch.func`` transform or forward-mode differentiation is at work: plain torch is right there."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that reductions run in: float32 for half types, else the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
