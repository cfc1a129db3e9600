"""Values as Python text, and the names that generated code uses for what has none."""

from __future__ import annotations

import builtins
import keyword
import math
import re
from collections.abc import Callable
from typing import Any

import torch

from resfx.passes.capture.structure import Template, build
from resfx.runtime.memory import remembering, settle

from . import values

_PLAIN = (type(None), bool, int, float, str)
_SCOPE = {"torch": torch, "build": build, "part": values.part, "Handed": values.Handed,
          "remembering": remembering, "settle": settle}  # fmt: skip


class Text:
    """A piece of generated code being written.

    Attributes:
        scope: what its global names stand for.
        taken: names that are in use.
    """

    def __init__(self) -> None:
        self.scope: dict[str, Any] = dict(_SCOPE)
        self.taken: set[str] = {"self", "new", "handed", *_SCOPE, *keyword.kwlist, *dir(builtins)}

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
