"""What lies in a list, dict or object that a module holds, whose reads nobody is told of: what of it counts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from resfx.passes.capture.objects import Held, Item, class_of, fields_of, is_open
from resfx.passes.holdings import ATOMS, LASTING, Holdings, Place
from resfx.passes.tensors import memory_at

_DEEPEST = 4
_ITEMS = (list, tuple, deque, set, frozenset)
_TENSOR = "a tensor"


@dataclass(frozen=True)
class Contents:
    """An attribute's value: numbers, texts and the like in it, and where it has tensors.

    Attributes:
        without: of the tensors, nothing: they may come and go.
        whole: each place that has a tensor, and which places have the same.
        tensors: whether these count.
    """

    without: Any
    whole: Any
    tensors: bool = False

    @classmethod
    def of(cls, value: Any) -> Contents | None:
        """What a value has in it; ``None`` where it is nothing to look into."""
        if not (isinstance(value, (*_ITEMS, dict, np.ndarray)) or is_open(value)):
            return None
        return cls(_outline(value, None), _outline(value, {}))

    def with_tensors(self) -> Contents:
        """The same for code that reads tensors in it."""
        return Contents(self.without, self.whole, True)

    def is_in(self, value: Any) -> bool:
        """Whether a value has the same in it."""
        known: Any = self.whole if self.tensors else self.without
        return bool(_outline(value, {} if self.tensors else None) == known)


class _Skipped:
    """Stands for a tensor that does not count."""


def _outline(value: Any, tensors: dict[int, int] | None, depth: int = 0) -> Any:
    if isinstance(value, torch.Tensor):
        return _Skipped if tensors is None else (_TENSOR, tensors.setdefault(id(value), len(tensors)))
    if isinstance(value, (*ATOMS, *LASTING)):
        return type(value), value
    if isinstance(value, nn.Module) or depth > _DEEPEST:
        return "something"
    if isinstance(value, np.ndarray):
        return Held(value)
    cls = class_of(value)
    inner = lambda held: _outline(held, tensors, depth + 1)
    if cls is dict:
        found = {k: inner(v) for k, v in value.items()}
        return cls, {k: v for k, v in found.items() if v is not _Skipped}
    if cls in (set, frozenset):
        return cls, sorted(map(repr, map(inner, value)))
    if cls is list or isinstance(value, (tuple, deque)):
        return cls, [v for v in map(inner, value) if v is not _Skipped]
    if not is_open(value):
        return cls
    fields = fields_of(value)
    if depth and tensors is None and any(isinstance(v, torch.Tensor) for v in fields.values()):
        return cls  # a state that changes from call to call, and is handed on
    named = {str(k) if isinstance(k, Item) else f".{k}": inner(v) for k, v in fields.items()}
    return cls, {k: v for k, v in named.items() if v is not _Skipped}


class Places:
    """Where a tree held which tensor before its code ran."""

    def __init__(self, tree: nn.Module) -> None:
        self._held: dict[Any, list[Place]] = {}
        for place, tensor in Holdings(tree).places:
            if len(place.steps) > 1 and (at := memory_at(tensor)) is not None:
                self._held.setdefault(at, []).append(place)

    def of(self, tensor: Any) -> tuple[Place, ...]:
        """The places of a tensor; none for one that the code made itself."""
        at = memory_at(tensor) if self._held else None
        return tuple(self._held.get(at, ())) if at is not None else ()
