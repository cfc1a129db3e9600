"""Tensors of somebody's model while it runs: what code sets on them, and what it writes into them."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from resfx._torch import OpOverload, TorchDispatchMode, schema_of
from resfx._torch.tensors import memory_of, set_tensor_hooks, tensor_hooks


@contextlib.contextmanager
def tensors_as_found(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Inside, code may set anything on some tensors; afterwards they have their data, ``requires_grad``, ``grad`` and
    hooks again. What is written into the data is not this function's business."""
    before = [_Found(t) for t in tensors]
    try:
        yield
    finally:
        for found in before:
            found.put_back()


class _Found:
    """What a tensor is, beside its values. It is set only where it differs: other threads may be using the tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.leaf, self.needs = tensor, tensor.is_leaf, tensor.requires_grad
        self.grad = tensor.grad if self.leaf else None
        self.hooks = [(table, dict(table or {})) for table in tensor_hooks(tensor)]
        plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
        self.data = tensor.data if plain else None

    def put_back(self) -> None:
        tensor = self.tensor
        if self.data is not None and _place(tensor) != _place(self.data):
            tensor.data = self.data
        if self.leaf and not tensor.is_leaf:  # a graph's result was written into it
            tensor.detach_()
        if tensor.requires_grad != self.needs:
            tensor.requires_grad_(self.needs)
        if self.leaf and tensor.grad is not self.grad:
            tensor.grad = self.grad
        for table, content in self.hooks:
            if table is not None and table != content:
                table.clear()
                table.update(content)
        if any(a is not b for a, (b, _) in zip(tensor_hooks(tensor), self.hooks, strict=True)):
            set_tensor_hooks(tensor, [table for table, _ in self.hooks])


def memory_at(value: Any) -> tuple[Any, ...] | None:
    """Where the numbers of a tensor lie and how they are read; ``None`` for what has none."""
    if not isinstance(value, torch.Tensor) or value.is_meta or not value.numel() or value.layout != torch.strided:
        return None
    try:
        return value.data_ptr(), value.shape, value.stride(), value.dtype
    except RuntimeError:  # a shard, a quantised weight
        return None


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    laid = (tensor.data_ptr(), tensor.stride()) if tensor.layout is torch.strided else tensor.layout
    return laid, tensor.shape, tensor.dtype, tensor.device


class Writes(TorchDispatchMode):
    """Sees every operator and keeps the values of some tensors from just before the first write into their memory.

    Also a write that ``_version`` does not count, as one into ``.data``. Not seen are writes that are no operator of
    torch: through NumPy, or in a kernel that is handed an address. Of tensors that nobody writes into, nothing is kept.

    Attributes:
        written: those written into, by ``id``, each with its memory and the values from before.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.written: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._at: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for tensor in tensors:
            data = tensor.detach()  # stays where it is when the tensor is given other data
            for place in memory_of(tensor):
                self._at[place].append((tensor, data))

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """A model may compile parts of itself, as ``flex_attention`` does: under a mode that says no, it could not."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        for position, name in _targets(func):
            value = args[position] if position < len(args) else named.get(name)
            for target in value if isinstance(value, (list, tuple)) else (value,):
                for place in memory_of(target) if isinstance(target, torch.Tensor) else ():
                    self._keep(place)
        return func(*args, **named)

    def _keep(self, place: int) -> None:
        for tensor, data in self._at.pop(place, ()):
            if id(tensor) not in self.written:
                self.written[id(tensor)] = tensor, data, data.clone()

    def put_back(self) -> None:
        """Write the values again."""
        with torch.no_grad():
            for _, data, value in self.written.values():
                data.copy_(value)


@functools.lru_cache(maxsize=4096)
def _targets(func: Any) -> Sequence[tuple[int, str]]:
    """The arguments that an operator writes into, by position and name."""
    if not isinstance(func, OpOverload):
        return ()
    arguments = enumerate(schema_of(func).arguments)
    return tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)
