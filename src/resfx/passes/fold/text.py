"""Values as Python text, and the names that generated code uses for what has none."""

from __future__ import annotations

import builtins
import keyword
import math
import operator
import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import fx

from resfx._torch import OpOverload, enter_autocast, exit_autocast, overload_name, schema_of
from resfx.passes.capture.normalize import enter_grad_mode, exit_grad_mode
from resfx.passes.capture.structure import Template, build
from resfx.runtime.memory import remembering, settle
from resfx.runtime.told import call_beside

from . import values

_PLAIN = (type(None), bool, int, float, str)
_SCOPE = {"torch": torch, "build": build, "part": values.part, "Handed": values.Handed,
          "remembering": remembering, "settle": settle, "call_beside": call_beside}  # fmt: skip

_SIGNS = {torch.ops.aten.add.Tensor: "+", torch.ops.aten.sub.Tensor: "-", torch.ops.aten.mul.Tensor: "*",
          torch.ops.aten.div.Tensor: "/", operator.add: "+", operator.sub: "-", operator.mul: "*",
          operator.truediv: "/", operator.floordiv: "//", operator.mod: "%", operator.eq: "=="}  # fmt: skip


class Opening(str):
    """A line that begins a region of the model's: ``with torch.autocast(...)``, ``with torch.no_grad()``."""


class Closing(str):
    """A line that ends one."""


REGIONS = {enter_grad_mode: Opening, enter_autocast: Opening, exit_grad_mode: Closing, exit_autocast: Closing}


def in_regions(lines: list[str]) -> list[str]:
    """Lines with the end of each region in a ``finally``: an error inside leaves no mode behind."""
    made: list[str] = []
    depth = 0
    open_after = list(accumulate(isinstance(x, Opening) - isinstance(x, Closing) for x in lines))
    if open_after and (min(open_after) < 0 or open_after[-1]):
        return lines  # of a stage or a call that holds a part of one
    for line in lines:
        if isinstance(line, Closing):
            made += ["    " * depth + "pass"] if made[-1].endswith("try:") else []
            depth -= 1
            made += ["    " * depth + "finally:", "    " * (depth + 1) + line]
        else:
            made.append("    " * depth + line)
        if isinstance(line, Opening):
            made.append("    " * depth + "try:")
            depth += 1
    return made


class Text:
    """A piece of generated code being written.

    Attributes:
        scope: what its global names stand for.
        taken: names that are in use.
    """

    def __init__(self) -> None:
        self.scope: dict[str, Any] = dict(_SCOPE)
        self.taken: set[str] = {"self", "new", "handed", *_SCOPE, *keyword.kwlist, *dir(builtins)}

    def _node(self, node: fx.Node) -> str:
        """A value of the graph."""
        raise NotImplementedError

    def _object(self, number: int) -> str:
        """A stateful object by number."""
        raise NotImplementedError

    def _owned(self, paths: tuple[str, ...]) -> str:
        """An object that modules have for an attribute."""
        raise NotImplementedError

    def _constant(self, value: Any, name: str = "constant") -> str:
        if isinstance(value, float) and not math.isfinite(value):
            return f"float({str(value)!r})"
        if type(value) in _PLAIN:
            return repr(value)
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return str(value)
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        return self._global(value, name)

    def _global(self, value: Any, name: str) -> str:
        for known, held in self.scope.items():
            if held is value:
                return known
        name = self._fresh(name)
        self.scope[name] = value
        return name

    def _fresh(self, name: str) -> str:
        name = re.sub(r"\W", "_", name) or "value"
        name = name if not name[0].isdigit() else f"_{name}"
        found, n = name, 1
        while found in self.taken:
            found, n = f"{name}_{n}", n + 1
        self.taken.add(found)
        return found

    def _compose(self, template: Template, leaf: Callable[[int], str]) -> str:
        """A value as its template says."""
        kind = template[0]
        if kind in ("tensor", "int"):
            return leaf(template[1])
        if kind == "const":
            return self._constant(template[2])
        if kind == "known":
            return self._object(template[1])
        if kind == "inside":
            return self._object(template[1]) + template[2]
        if kind == "owned":
            return self._owned(template[1])
        if kind == "seq" and template[1] in (list, tuple):
            parts = [self._compose(t, leaf) for t in template[2]]
            if template[1] is list:
                return f"[{', '.join(parts)}]"
            return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
        if kind == "dict":
            parts = [
                f"{self._constant(k)}: {self._compose(t, leaf)}" for k, t in zip(template[1], template[2], strict=True)
            ]
            return "{" + ", ".join(parts) + "}"
        shape, leaves, objects = values.numbered(template)
        known = f", [{', '.join(map(self._object, objects))}]" if objects else ""
        return f"build({self._global(shape, 'template')}, [{', '.join(map(leaf, leaves))}]{known})"

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self._node(value)
        if type(value) in (list, fx.immutable_collections.immutable_list):
            return f"[{', '.join(map(self._text, value))}]"
        if type(value) is tuple:
            return f"({', '.join(map(self._text, value))}{',' if len(value) == 1 else ''})"
        if isinstance(value, slice):
            return f"slice({self._text(value.start)}, {self._text(value.stop)}, {self._text(value.step)})"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k!r}: {self._text(v)}" for k, v in value.items()) + "}"
        return self._constant(value)

    def _target(self, node: fx.Node) -> str:
        target, args = node.target, [self._text(a) for a in node.args]
        given = [*args, *(f"{k}={self._text(v)}" for k, v in node.kwargs.items())]
        if node.op == "call_method":
            return f"{args[0]}.{target}({', '.join(given[1:])})"
        if target in _SIGNS and len(given) == 2 and not node.kwargs:
            return f"({args[0]} {_SIGNS[target]} {args[1]})"  # type: ignore[index]
        if target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        if isinstance(target, OpOverload):
            space, name = schema_of(target).name.split("::")
            return f"torch.ops.{space}.{name}.{overload_name(target)}({', '.join(given)})"
        name = getattr(target, "__name__", "function")
        return f"{self._global(target, name)}({', '.join(given)})"
