"""What is borrowed of tensors: where they lie, and the hooks on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass  # made of other tensors

from . import is_traced


def memory_of(tensor: torch.Tensor) -> list[int]:
    """Where the storages begin that a tensor lies in: several where it is made of others, none where it has no values
    or is not laid out by strides."""
    if is_traced(tensor):
        return []
    if is_traceable_wrapper_subclass(tensor):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]  # a DTensor's mesh among them
        return [place for part in parts if isinstance(part, torch.Tensor) for place in memory_of(part)]
    if tensor.is_meta or tensor.layout is not torch.strided:
        return []
    place = tensor.untyped_storage().data_ptr()
    return [place] if place else []


def tensor_hooks(tensor: torch.Tensor) -> list[dict[int, Any] | None]:
    """The tables of the hooks on a tensor's gradient, before and after it is added to ``.grad``."""
    return [tensor._backward_hooks, tensor._post_accumulate_grad_hooks]


def set_tensor_hooks(tensor: torch.Tensor, tables: Sequence[dict[int, Any] | None]) -> None:
    """Give a tensor such tables."""
    held: Any = tensor
    held._backward_hooks, held._post_accumulate_grad_hooks = tables
