"""What the generated code of a call was made for, and whether another call is like it.

Only what the code itself reads counts: arguments that it hands on to the user's own modules may be anything, and what
those modules are set to is theirs. Plain attributes that were read while the code was traced are compared at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from resfx.passes.capture.objects import fields_of
from resfx.passes.capture.structure import Flattener, Template

Shape = Callable[[Sequence[torch.Tensor]], bool]


@dataclass(eq=False)
class Guard:
    """
    Attributes:
        arguments: a template for each parameter, ``None`` where it may be anything of the kind that was traced.
        objects: classes of the stateful objects that arguments refer to, by number; with the whole state where the
            code read it.
        used: slots of tensors whose numbers, sizes or types the code computes with.
        kinds: their types and devices.
        shapes: a predicate over them.
        reads: attributes that the code's own Python read: the way from the module, and what was there.
        autocast: as it was.
    """

    arguments: dict[str, Any]
    objects: dict[int, tuple[type, Template | None]]
    free: frozenset[int]
    used: tuple[int, ...]
    kinds: tuple[tuple[torch.dtype, torch.device], ...]
    shapes: Shape
    reads: tuple[tuple[tuple[str, ...], Any], ...]
    autocast: tuple[Any, ...]

    def fits(self, module: nn.Module, given: dict[str, Any]) -> bool:
        """Whether a call, its arguments by name, is like the one that the code was made for."""
        if given.keys() != self.arguments.keys() or self.autocast != autocast_state():
            return False
        found: dict[int, Any] = {}
        for name, template in self.arguments.items():
            if not self._like(template, given[name], found):
                return False
        tensors = [found[i] for i in self.used]
        for tensor, kind in zip(tensors, self.kinds, strict=True):
            if (tensor.dtype, tensor.device) != kind:
                return False
        if not self.shapes(tensors):
            return False
        for way, value in self.reads:
            now = look_up(module, way)
            if type(now) is not type(value) or now != value:
                return False
        return True

    def _like(self, template: Any, value: Any, found: dict[int, Any]) -> bool:
        if isinstance(template, dict):
            return isinstance(value, dict) and value.keys() == template.keys() and all(
                [self._like(t, value[k], found) for k, t in template.items()]
            )  # fmt: skip
        if isinstance(template, list):
            return len(value) == len(template) and all(
                [self._like(t, v, found) for t, v in zip(template, value, strict=True)]
            )
        kind = template[0]
        if kind == "tensor":
            if template[1] in self.free:
                return True
            found[template[1]] = value
            return isinstance(value, torch.Tensor)
        if kind == "const":
            return type(value) is template[1] and bool(value is template[2] or value == template[2])
        if kind == "int":
            return type(value) is int or isinstance(value, torch.SymInt)
        if kind == "known":
            cls, state = self.objects[template[1]]
            return type(value) is cls and (state is None or Flattener().state(value) == state)
        if kind == "owned":
            return True
        if kind == "held":
            return template[2] == type(template[2])(value)
        if type(value) is not (dict if kind == "dict" else template[1]):
            return False
        parts = template[-1]
        if kind == "dict":
            return tuple(value) == template[1] and all(
                [self._like(t, value[k], found) for k, t in zip(template[1], parts, strict=True)]
            )
        if kind == "seq":
            children: Any = value
        elif kind == "node":
            children, context = pytree.SUPPORTED_NODES[template[1]].flatten_fn(value)
            if context != template[2]:
                return False
        else:
            fields = fields_of(value)
            if tuple(fields) != template[2]:
                return False
            children = fields.values()
        return len(children) == len(parts) and all(
            [self._like(t, v, found) for t, v in zip(parts, children, strict=True)]
        )


def autocast_state() -> tuple[Any, ...]:
    """What autocast does on each kind of device."""
    return tuple([(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)])


def look_up(module: Any, way: tuple[str, ...]) -> Any:
    """What a way of attributes and submodules leads to; ``None`` where it ends early."""
    for name in way:
        module = getattr(module, name, None)
    return module
