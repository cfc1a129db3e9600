"""What lies inside an object of the user's: its attributes, its items, and tensors where nobody can reach them."""

from __future__ import annotations

import enum
import gc
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from resfx._torch import OpOverload, OpOverloadPacket
from resfx.passes.holdings import Item, slots_of

ATOMS = (type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis))
CONSTANTS = (
    torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator, torch.nn.Module, type, enum.Enum,
    types.ModuleType, np.generic, np.dtype,
)  # fmt: skip

_BASES: tuple[type, ...] = (OrderedDict, defaultdict, dict, list, types.SimpleNamespace, object)
_HEAP_TYPE = 1 << 9  # set for classes made by a ``class`` statement


class Held:
    """A constant whose equality cannot be trusted to be a plain yes or no: an array, an object of a C extension."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value.copy() if isinstance(value, np.ndarray) else value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held) or type(self.value) is not type(other.value):
            return False
        a, b = self.value, other.value
        if isinstance(a, np.ndarray):
            return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        if a is b:
            return True
        try:
            return bool(a == b)
        except Exception:
            return False

    def __hash__(self) -> int:
        return hash(type(self.value))

    def __repr__(self) -> str:
        value = self.value
        return f"{type(value).__name__}{value.shape}" if isinstance(value, np.ndarray) else repr(value)

    def give(self) -> Any:
        """The constant; of an array a copy, which its user may write to."""
        return self.value.copy() if isinstance(self.value, np.ndarray) else self.value


class Layout(NamedTuple):
    """How the objects of a class are made: the class in C below it, and the names of their slots.

    ``base`` is ``None`` where an object cannot be made empty and filled.
    """

    base: type | None
    slots: tuple[str, ...]


_LAYOUTS: dict[type, Layout] = {}  # a plain dict: torch.compile reads through it


def layout_of(cls: type) -> Layout:
    """The layout of a class."""
    found = _LAYOUTS.get(cls)
    if found is None:
        base = next(c for c in cls.__mro__ if not c.__flags__ & _HEAP_TYPE)
        found = _LAYOUTS[cls] = Layout(base if base in _BASES or base is tuple else None, slots_of(cls))
    return found


def is_open(value: Any) -> bool:
    """Whether a value is an object of attributes and items, which another can be made of."""
    layout = layout_of(type(value))
    if layout.base is None or layout.base is tuple or callable(value):
        return False
    return hasattr(value, "__dict__") or bool(layout.slots) or isinstance(value, (dict, list))


WATCH = "_resfx_watch"
"""The attribute by which an object tells of reads while it is traced; see :mod:`.watch`."""


def class_of(value: Any) -> type:
    """The class of an object, whether or not it is watched."""
    return getattr(type(value), "_resfx_untold", type(value))


def fields_of(value: Any) -> dict[Any, Any]:
    """Attributes by name, in ``__dict__`` and in slots, and items by :class:`Item`."""
    attributes = getattr(value, "__dict__", None)
    if attributes is value:  # a dict whose attributes are its items
        found: dict[Any, Any] = {"__dict__": value}
    else:
        found = {} if attributes is None else {k: v for k, v in attributes.items() if k != WATCH}
    for name in layout_of(type(value)).slots:
        if hasattr(value, name):
            found[name] = getattr(value, name)
    if isinstance(value, defaultdict):
        found["default_factory"] = value.default_factory
    if isinstance(value, dict):
        found.update((Item(k), v) for k, v in dict.items(value))
    elif isinstance(value, list):
        found.update((Item(i), v) for i, v in enumerate(list.__iter__(value)))
    return found


def empty(cls: type) -> Any:
    """An object of a class with nothing in it; no code of the class is run."""
    base: Any = layout_of(cls).base
    return base.__new__(cls)


def fill(value: Any, fields: dict[Any, Any]) -> None:
    """Give an object these attributes and items and no others. Lists and dicts it holds stay the same objects."""
    layout = layout_of(type(value))
    if layout.base is object and not layout.slots:
        _fill_attributes(value.__dict__, fields)
        return
    items = {k.key: v for k, v in fields.items() if isinstance(k, Item)}
    named = {k: v for k, v in fields.items() if not isinstance(k, Item)}
    own = ("default_factory",) if isinstance(value, defaultdict) else ()
    aside = {n: named.pop(n) for n in (*layout.slots, *own, "__dict__") if n in named}
    attributes = getattr(value, "__dict__", None)
    if attributes is not None and attributes is not value and "__dict__" not in aside:
        _fill_attributes(attributes, named)
    if isinstance(value, dict):
        _fill_dict(value, items)
    elif isinstance(value, list):
        _fill_list(value, list(items.values()))
    for name, new in aside.items():
        object.__setattr__(value, name, renew(getattr(value, name, None), new))


def _fill_attributes(attributes: dict[str, Any], named: dict[str, Any]) -> None:
    for name in [n for n in attributes if n not in named]:
        del attributes[name]
    for name, new in named.items():
        attributes[name] = renew(attributes.get(name), new)


def renew(old: Any, new: Any) -> Any:
    """``new`` in the containers of ``old``, as far as these are of one kind: whoever else holds them sees it too."""
    if type(old) is not type(new) or type(new) not in (list, dict, tuple):
        return new
    if type(new) is dict:
        _fill_dict(old, {k: renew(old.get(k), v) for k, v in new.items()})
        return old
    merged = [renew(a, b) for a, b in zip(old, new, strict=False)] + list(new[len(old) :])
    if type(new) is list:
        _fill_list(old, merged)
        return old
    same = len(old) == len(merged) and all(a is b for a, b in zip(old, merged, strict=True))
    return old if same else tuple(merged)


def _fill_dict(value: dict[Any, Any], items: dict[Any, Any]) -> None:
    if list(dict.keys(value)) == list(items) and all(dict.__getitem__(value, k) is v for k, v in items.items()):
        return
    base: Any = OrderedDict if isinstance(value, OrderedDict) else dict
    base.clear(value)
    for key, item in items.items():
        base.__setitem__(value, key, item)


def _fill_list(value: list[Any], items: list[Any]) -> None:
    if list.__len__(value) != len(items) or any(a is not b for a, b in zip(list.__iter__(value), items, strict=True)):
        list.__setitem__(value, slice(None), items)


def is_iterator(value: Any) -> bool:
    """Whether reading a value uses it up."""
    return isinstance(value, Iterator)


def hides_tensor(value: Any) -> bool:
    """Whether a tensor is anywhere inside a value that cannot be taken apart: in a closure, a set, a C object."""
    seen: set[int] = set()
    todo = [value]
    while todo and len(seen) < 10_000:
        here = todo.pop()
        if isinstance(here, torch.Tensor):
            return True
        if id(here) in seen or isinstance(here, (*ATOMS, *CONSTANTS, types.BuiltinFunctionType, types.CodeType)):
            continue
        seen.add(id(here))
        if isinstance(here, types.FunctionType):  # not its globals
            todo += [*(here.__closure__ or ()), here.__defaults__, here.__kwdefaults__]
        elif not isinstance(here, (OpOverload, OpOverloadPacket)):
            todo += gc.get_referents(here)
    return False
