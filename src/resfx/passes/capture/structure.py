"""Taking call arguments and outputs apart into tensors and a template, and putting them together again.

``torch.utils._pytree`` stops at classes it does not know, and the caches that decoders pass around are such
classes; so are NamedTuples, dataclasses, and dicts and lists of a class of their own. A template here is a nested
tuple: comparable and free of tensors. Its kinds:

- ``tensor``, ``int``: a leaf by number. An integer field of a stateful object (how many tokens a sliding cache has
  seen) becomes a leaf once it was seen to vary, so that one graph serves all.
- ``const``, ``held``: part of the graph; equal constants mean the same graph.
- ``seq``, ``dict``, ``node`` (a class that torch's pytree knows), ``object`` (attributes and items): made of others.
- ``known``: an object of the caller's; ``met``: an object met before in the same value; ``owned``: a module's own
  object, by the ways to it.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from resfx._torch import pytree
from resfx.errors import CaptureError

from .objects import (
    ATOMS,
    CONSTANTS,
    Held,
    class_of,
    empty,
    fields_of,
    fill,
    hides_tensor,
    is_iterator,
    is_open,
    layout_of,
)

Template = tuple[Any, ...]

COMPOUND = ("seq", "dict", "node", "object")
DEEPEST = 100  # lists in lists
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class Flattener:
    """One pass over a value. ``leaves`` collects tensors (and integers that vary) in order.

    Args:
        known: objects that belong to the caller; meeting one again yields a reference instead of a copy.
        varying: integer fields ``(class, name)`` of stateful objects that are leaves, not constants.

    Attributes:
        objects: objects with attributes that were met and are not known, in order.
    """

    def __init__(self, known: Sequence[Any] = (), varying: Collection[tuple[type, str]] = ()) -> None:
        self.leaves: list[Any] = []
        self.objects: list[Any] = []
        self._known = {id(value): i for i, value in enumerate(known)}
        self._varying = varying
        self._met: dict[int, int] = {}
        self._depth = 0

    def flatten(self, value: Any) -> Template:
        """The template of ``value``; its leaves are appended to ``self.leaves``.

        Raises:
            CaptureError: for a value that holds tensors and cannot be taken apart, naming its class.
        """
        self._met, self._depth = {}, 0
        return self._take(value)

    def state(self, value: Any) -> Template:
        """The template of a stateful object, whether or not the caller knows it."""
        self._met, self._depth = {}, 0
        return self._state(value)

    def _take(self, value: Any) -> Template:
        cls = type(value)
        if cls in ATOMS:
            return ("const", cls, value)
        if isinstance(value, torch.Tensor):
            return self._leaf("tensor", value)
        if isinstance(value, _NUMBERS):
            return self._leaf("int", value)
        if cls is dict:
            if any(isinstance(k, torch.Tensor) for k in value):
                raise _refusal(cls, "it has tensors for keys", "pass names as keys")
            return ("dict", tuple(value), self._inside(value, value.values()))
        if cls is list or (isinstance(value, tuple) and _is_plain_tuple(value)):
            return ("seq", cls, self._inside(value, value))
        if isinstance(value, CONSTANTS):
            return ("const", cls, value)
        if cls in pytree.SUPPORTED_NODES:
            children, context = pytree.SUPPORTED_NODES[cls].flatten_fn(value)
            return ("node", cls, context, self._inside(value, children))
        if is_open(value):
            return self._object(value)
        return self._constant(value)

    def _inside(self, value: Any, parts: Any) -> tuple[Template, ...]:
        if self._depth > DEEPEST:
            raise _refusal(type(value), "it contains itself", "an object with attributes may refer to itself")
        self._depth += 1
        taken = tuple([self._take(v) for v in parts])
        self._depth -= 1
        return taken

    def _object(self, value: Any) -> Template:
        if id(value) in self._known:
            return ("known", self._known[id(value)])
        if id(value) in self._met:
            return ("met", self._met[id(value)])
        self._met[id(value)] = len(self._met)
        self.objects.append(value)
        return self._state(value)

    def _state(self, value: Any) -> Template:
        cls, fields = class_of(value), fields_of(value)
        # A trace takes 0 and 1 for constants whatever it is told.
        parts = [
            self._leaf("int", v) if type(v) is int and v > 1 and (cls, k) in self._varying else self._take(v)
            for k, v in fields.items()
        ]
        return ("object", cls, tuple(fields), tuple(parts))

    def _constant(self, value: Any) -> Template:
        cls = type(value)
        if cls is np.ndarray and not value.dtype.hasobject:
            return ("held", cls, Held(value))
        if is_iterator(value) or isinstance(value, types.GeneratorType):
            raise _refusal(cls, "it can be read only once", "pass or return a list of what it yields")
        if isinstance(value, np.ndarray) or hides_tensor(value):
            what = "a function over tensors of its own" if callable(value) else "what it holds cannot be taken out"
            raise _refusal(cls, what, "pass and return the tensors themselves, in a tuple, a dict or a dataclass")
        return ("const", cls, value) if callable(value) else ("held", cls, Held(value))

    def _leaf(self, kind: str, value: Any) -> Template:
        self.leaves.append(value)
        return (kind, len(self.leaves) - 1)


def _is_plain_tuple(value: Any) -> bool:
    """Whether a tuple is nothing beside its items; so are NamedTuples."""
    cls = type(value)
    return cls in (tuple, torch.Size) or (layout_of(cls).base is tuple and not getattr(value, "__dict__", None))


def _refusal(cls: type, found: str, remedy: str) -> CaptureError:
    return CaptureError(f"cannot take a {cls.__qualname__} apart among the arguments or results", found, remedy)


def innermost(template: Template) -> Iterator[Template]:
    """The parts of a template that are not made of others."""
    if template[0] not in COMPOUND:
        yield template
        return
    for part in template[-1]:
        yield from innermost(part)


def build(template: Template, leaves: Sequence[Any], known: Sequence[Any] = ()) -> Any:
    """The value a template describes, with its leaves filled in."""
    return _build(template, leaves, known, [])


def _build(template: Template, leaves: Sequence[Any], known: Sequence[Any], met: list[Any]) -> Any:
    kind = template[0]
    if kind in ("tensor", "int"):
        return leaves[template[1]]
    if kind == "const":
        return template[2]
    if kind == "held":
        return template[2].give()
    if kind == "known":
        return known[template[1]]
    if kind == "met":
        return met[template[1]]
    if kind == "object":
        value = empty(template[1])
        met.append(value)
        fill(value, _fields(template, leaves, known, met))
        return value
    parts = [_build(t, leaves, known, met) for t in template[-1]]
    if kind == "dict":
        return dict(zip(template[1], parts, strict=True))
    if kind == "node":
        return pytree.SUPPORTED_NODES[template[1]].unflatten_fn(parts, template[2])
    cls = template[1]
    if cls is list:
        return parts
    return torch.Size(parts) if cls is torch.Size else tuple.__new__(cls, parts)


def _fields(template: Template, leaves: Sequence[Any], known: Sequence[Any], met: list[Any]) -> dict[Any, Any]:
    return {k: _build(t, leaves, known, met) for k, t in zip(template[2], template[3], strict=True)}


def restore(value: Any, template: Template, leaves: Sequence[Any], known: Sequence[Any] = ()) -> None:
    """Set the fields of a stateful object to what its template says."""
    fill(value, _fields(template, leaves, known, []))


def varied(old: Template, new: Template) -> set[tuple[type, str]] | None:
    """The integer fields in which two templates differ; ``None`` if they differ in anything else."""
    if old == new:
        return set()
    if old[0] != new[0] or old[0] not in COMPOUND or old[1:-1] != new[1:-1]:
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


def named_parts(template: Template) -> Iterator[tuple[str, Template]]:
    """The parts of a template by name: field, key or position."""
    kind, parts = template[0], template[-1]
    if kind not in COMPOUND:
        return
    keys: Any = range(len(parts))
    if kind == "dict":
        keys = template[1]
    elif kind == "object":
        keys = template[2]
    elif kind == "seq":
        keys = getattr(template[1], "_fields", keys)
    elif isinstance(template[2], (list, tuple)) and len(template[2]) == len(parts):
        keys = template[2]  # what a pytree node keeps is the names of its fields, where it has any
    yield from zip(map(str, keys), parts, strict=True)


def describe(template: Template) -> str:
    """A short text for messages: the classes in a template."""
    kind = template[0]
    if kind in ("tensor", "int"):
        return kind
    if kind in ("const", "held"):
        return repr(template[2])
    if kind in ("known", "met"):
        return "input"
    names: Callable[[Any], str] = lambda t: ", ".join(describe(x) for x in t)
    if kind == "dict":
        return "{" + ", ".join(f"{k}={describe(t)}" for k, t in zip(template[1], template[2], strict=True)) + "}"
    return f"{template[1].__name__}({names(template[-1])})"


def exchange(value: Any, template: Template, leaves: Sequence[Any]) -> Any:
    """``value`` with other leaves. Lists and dicts stay the objects they are: a call may write into them."""
    kind = template[0]
    if kind == "tensor":
        return leaves[template[1]]
    if not any(part[0] == "tensor" for part in innermost(template)):
        return value
    if kind == "dict":
        for key, part in zip(template[1], template[-1], strict=True):
            value[key] = exchange(value[key], part, leaves)
        return value
    if kind == "seq":
        parts = [exchange(v, t, leaves) for v, t in zip(value, template[-1], strict=True)]
        if template[1] is list:
            value[:] = parts
            return value
        return tuple.__new__(template[1], parts)
    if kind == "node":
        children, context = pytree.SUPPORTED_NODES[template[1]].flatten_fn(value)
        parts = [exchange(v, t, leaves) for v, t in zip(children, template[-1], strict=True)]
        return pytree.SUPPORTED_NODES[template[1]].unflatten_fn(parts, context)
    twin = copy.copy(value)
    fields = fields_of(value)
    fill(twin, {k: exchange(fields[k], t, leaves) for k, t in zip(template[2], template[-1], strict=True)})
    return twin
