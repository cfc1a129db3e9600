"""Taking call arguments and outputs apart into tensors and a template, and putting them together again.

``torch.utils._pytree`` stops at classes it does not know, and the caches that decoders pass around are such
classes. A template here is a nested tuple: comparable and free of tensors. An integer field of a stateful object
(how many tokens a sliding cache has seen) becomes a leaf once it was seen to vary, so that one graph serves all.
"""

from __future__ import annotations

import copyreg
import enum
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from resfx._torch import pytree

Template = tuple[Any, ...]

_ATOMS = (type(None), bool, int, float, complex, str, bytes, range, slice)
_TORCH_ATOMS = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.nn.Module, type, enum.Enum)


class Flattener:
    """One pass over a value. ``leaves`` collects tensors (and integers that vary) in order.

    Args:
        known: objects that belong to the caller; meeting one again yields a reference instead of a copy.
        varying: integer fields ``(class, name)`` of stateful objects that are leaves, not constants.
    """

    def __init__(self, known: Sequence[Any] = (), varying: Collection[tuple[type, str]] = ()) -> None:
        self.leaves: list[Any] = []
        self.objects: list[Any] = []
        self._known = {id(value): i for i, value in enumerate(known)}
        self._varying = varying

    def flatten(self, value: Any) -> Template:
        """The template of ``value``; its leaves are appended to ``self.leaves``."""
        if isinstance(value, torch.Tensor):
            return self._leaf("tensor", value)
        if isinstance(value, torch.SymInt):
            return self._leaf("int", value)
        cls = type(value)
        if cls in (list, tuple):
            return ("seq", cls, tuple([self.flatten(v) for v in value]))
        if cls is dict:
            return ("dict", tuple(value), tuple([self.flatten(v) for v in value.values()]))
        if cls in _ATOMS or isinstance(value, _TORCH_ATOMS) or callable(value):
            return ("const", cls, value)
        if cls in pytree.SUPPORTED_NODES:
            children, context = pytree.SUPPORTED_NODES[cls].flatten_fn(value)
            return ("node", cls, context, tuple([self.flatten(v) for v in children]))
        if hasattr(value, "__dict__"):
            if id(value) in self._known:
                return ("known", self._known[id(value)])
            self.objects.append(value)
            return self.state(value)
        return ("const", cls, value)

    def state(self, value: Any) -> Template:
        """The template of a stateful object, whether or not the caller knows it."""
        cls, fields = type(value), vars(value)
        parts = [
            self._leaf("int", v) if type(v) is int and (cls, k) in self._varying else self.flatten(v)
            for k, v in fields.items()
        ]
        return ("object", cls, tuple(fields), tuple(parts))

    def _leaf(self, kind: str, value: Any) -> Template:
        self.leaves.append(value)
        return (kind, len(self.leaves) - 1)


def build(template: Template, leaves: Sequence[Any], known: Sequence[Any] = ()) -> Any:
    """The value a template describes, with its leaves filled in."""
    kind = template[0]
    if kind in ("tensor", "int"):
        return leaves[template[1]]
    if kind == "const":
        return template[2]
    if kind == "seq":
        return template[1]([build(t, leaves, known) for t in template[2]])
    if kind == "dict":
        return {k: build(t, leaves, known) for k, t in zip(template[1], template[2], strict=True)}
    if kind == "node":
        children = [build(t, leaves, known) for t in template[3]]
        return pytree.SUPPORTED_NODES[template[1]].unflatten_fn(children, template[2])
    if kind == "known":
        return known[template[1]]
    value = copyreg.__newobj__(template[1])  # type: ignore[attr-defined]
    restore(value, template, leaves, known)
    return value


def restore(value: Any, template: Template, leaves: Sequence[Any], known: Sequence[Any] = ()) -> None:
    """Set the fields of a stateful object to what its template says."""
    fields = {k: build(t, leaves, known) for k, t in zip(template[2], template[3], strict=True)}
    value.__dict__.clear()
    value.__dict__.update(fields)


def varied(old: Template, new: Template) -> set[tuple[type, str]] | None:
    """The integer fields in which two templates differ; ``None`` if they differ in anything else."""
    if old == new:
        return set()
    if old[0] != new[0] or old[0] not in ("seq", "dict", "node", "object") or old[1:-1] != new[1:-1]:
        return None
    found: set[tuple[type, str]] = set()
    if len(old[-1]) != len(new[-1]):
        return None
    for i, (a, b) in enumerate(zip(old[-1], new[-1], strict=True)):
        if old[0] == "object" and a[0] == b[0] == "const" and a[1] is b[1] is int and a != b:
            found.add((old[1], old[2][i]))
        elif (inner := varied(a, b)) is None:
            return None
        else:
            found |= inner
    return found


def describe(template: Template) -> str:
    """A short text for messages: the classes in a template."""
    kind = template[0]
    if kind in ("tensor", "int"):
        return kind
    if kind == "const":
        return repr(template[2])
    if kind == "known":
        return "input"
    names: Callable[[Any], str] = lambda t: ", ".join(describe(x) for x in t)
    if kind == "dict":
        return "{" + ", ".join(f"{k}={describe(t)}" for k, t in zip(template[1], template[2], strict=True)) + "}"
    return f"{template[1].__name__}({names(template[-1])})"
