"""Which attributes a model's own Python reads while it is traced: their values are part of the graph.

The objects watched belong to the trace alone (the copied tree, its configs, rebuilt arguments); for that time each has
a class of the same name that tells of reads.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import threading
import types
from collections import ChainMap
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any, NamedTuple

from torch import nn

from resfx._torch import held_buffers, held_modules, held_parameters
from resfx.passes.capture.objects import WATCH
from resfx.passes.holdings import ATOMS, LASTING, OF_TORCH, is_object, own_attributes

from .record import Inside


class Found(enum.Enum):
    """How an attribute was found, where its value is nothing to compare."""

    MISSING = "not at all"
    PRESENT = "a tensor, whichever"
    CHILD = "a submodule, whichever"
    CALLED = "something to call that a copy of a tree may have another of"
    METHOD = "a method of its class"
    CHILDREN = "by going through what a module holds"


_OWN = OF_TORCH | {WATCH}
_TORCHS = frozenset(dir(nn.Module))
Tell = Callable[[Any, str, Any], None]


@dataclass(eq=False, frozen=True)
class Owned:
    """A module of the traced tree, or an object that modules of it hold for an attribute.

    Attributes:
        ways: the attributes that lead to it from the root: one for each that has it.
    """

    ways: tuple[tuple[str, ...], ...]

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The ways, dotted."""
        return tuple(".".join(way) for way in self.ways)

    def way_from(self, own: tuple[str, ...]) -> tuple[str, ...] | None:
        """The shortest way from the module ``own``; ``None`` where none leads past it."""
        return min((w[len(own) :] for w in self.ways if w[: len(own)] == own), key=len, default=None)


class Held(NamedTuple):
    """What was read where an attribute has an object that has attributes itself: those that count are told apart."""

    cls: type
    owned: Owned


class Watch:
    """Objects whose attribute reads are told.

    Args:
        tell: called with what was registered with the object, the attribute and its value.
        wrap: called with what was registered and a bound method that is looked up; returns what to call instead.
        wrote: called with an object, what was registered with it, an attribute that was set, and what it was before.
    """

    def __init__(
        self, tell: Tell, wrap: Callable[[Any, types.MethodType], Any], wrote: Callable[[Any, Any, str, Any], None]
    ) -> None:
        self.tell, self.wrap, self._wrote = tell, wrap, wrote
        self._thread = threading.get_ident()
        self._watched: dict[int, tuple[Any, type, Any]] = {}

    def add(self, value: Any, key: Any) -> bool:
        """Watch an object from now on; says whether it can be watched."""
        if id(value) in self._watched:
            if isinstance(self._watched[id(value)][2], Inside):  # met by itself now
                value.__dict__[WATCH] = (self, key)
                self._watched[id(value)] = (*self._watched[id(value)][:2], key)
            return True
        cls: Any = type(value)
        try:
            object.__setattr__(value, "__class__", _telling(cls))  # a frozen dataclass refuses the plain way
        except TypeError:  # slots, or a class of a C extension
            return False
        value.__dict__[WATCH] = (self, key)
        self._watched[id(value)] = (value, cls, key)
        return True

    def held(self, value: Any) -> Held | None:
        """What an object of the tree is known as."""
        _, cls, key = self._watched.get(id(value), (None, None, None))
        return Held(cls, key) if cls is not None and isinstance(key, Owned) else None

    def end(self) -> None:
        """Give every object its class back."""
        for value, cls, _ in self._watched.values():
            object.__setattr__(value, "__class__", cls)
            value.__dict__.pop(WATCH, None)
        self._watched.clear()

    def read(self, key: Any, name: str, value: Any) -> None:
        """An attribute was read."""
        if threading.get_ident() == self._thread:
            self.tell(key, name, value)

    def wrote(self, value: Any, key: Any, name: str, before: Any) -> None:
        """An attribute was set."""
        if threading.get_ident() == self._thread:
            self._wrote(value, key, name, before)

    def method(self, key: Any, bound: types.MethodType) -> Any:
        """A method was looked up."""
        return self.wrap(key, bound) if threading.get_ident() == self._thread else bound


def own(value: Any) -> Mapping[str, Any]:
    """What an object has of attributes that code may set: a module's buffers, too."""
    held = object.__getattribute__(value, "__dict__")
    return ChainMap(held, held_buffers(value)) if isinstance(value, nn.Module) else held


def _counts(name: str) -> bool:
    """Whether an attribute is an author's."""
    return name[:1] != "_" or (name[:2] != "__" and name not in _OWN and not name.startswith("_resfx"))


def _found(holder: Any, name: str, value: Any) -> Any:
    """What is to be told of a value that a class's ``__getattr__`` gave: ``None`` is also an empty place."""
    if value is None or not isinstance(holder, nn.Module):
        return value
    if name in held_parameters(holder) or name in held_buffers(holder):
        return Found.PRESENT
    return Found.CHILD if name in held_modules(holder) else value


@functools.cache
def _telling(cls: Hashable) -> type:
    def __getattribute__(self: Any, name: str) -> Any:
        try:
            value = super(told, self).__getattribute__(name)  # type: ignore[arg-type, misc]
        except AttributeError:
            if not hasattr(base, "__getattr__"):
                lacks(self, name)
            raise
        if _counts(name):
            held = object.__getattribute__(self, "__dict__")
            if (watch := held.get(WATCH)) is not None:
                if isinstance(value, types.MethodType) and name not in held:
                    return watch[0].method(watch[1], value)
                if name not in _TORCHS and (name in held or not hasattr(getattr_static(base, name, None), "__get__")):
                    watch[0].read(watch[1], name, value)  # what a property reads is told of by itself
        return value

    def __getattr__(self: Any, name: str) -> Any:
        try:
            value = super(told, self).__getattr__(name)  # type: ignore[arg-type, misc]
        except AttributeError:
            lacks(self, name)
            raise
        if _counts(name):
            tell(self, name, _found(self, name, value))
        return value

    def lacks(self: Any, name: str) -> None:
        if _counts(name) and getattr_static(base, name, Found.MISSING) is Found.MISSING:  # else a property has failed
            tell(self, name, Found.MISSING)

    def tell(self: Any, name: str, value: Any) -> None:
        if (watch := object.__getattribute__(self, "__dict__").get(WATCH)) is not None:
            watch[0].read(watch[1], name, value)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        held = own(self)
        watch, before = held.get(WATCH), held.get(name, Found.MISSING)
        super(told, self).__setattr__(name, value)  # type: ignore[arg-type, misc]
        if watch is not None and name in held and (name not in _OWN or name == "training"):
            watch[0].wrote(self, watch[1], name, before)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # a model may copy its config: the copy is not watched
        watch, key = object.__getattribute__(self, "__dict__")[WATCH]
        for name, value in list(vars(self).items()):
            if name != WATCH:
                watch.read(key, name, value)
        made, args, *rest = super(told, self).__reduce_ex__(protocol)  # type: ignore[arg-type, misc]
        state = {k: v for k, v in rest[0].items() if k != WATCH} if rest and isinstance(rest[0], dict) else None
        return (
            made,
            tuple([base if a is told else a for a in args]),
            *([state, *rest[1:]] if state is not None else rest),
        )

    base: Any = cls
    told = type(base.__name__, (base,), {
        "__getattribute__": __getattribute__, "__setattr__": __setattr__, "__reduce_ex__": __reduce_ex__,
        "__module__": base.__module__, "__qualname__": base.__qualname__, "_resfx_untold": base,
        **({"__getattr__": __getattr__} if hasattr(base, "__getattr__") else {}),
    })  # fmt: skip
    return told


def plain(value: Any, depth: int = 0) -> bool:
    """Whether a value can be compared later: numbers, texts, functions, types, and what holds only such."""
    if isinstance(value, (*ATOMS, *LASTING)):
        return True
    if isinstance(value, types.FunctionType):  # a copy of a tree may have another that closes over its own modules
        ours = (value.__module__ or "").startswith("resfx.")  # stands for what recomputes, while a trace is made
        return not (value.__closure__ or value.__defaults__ or ours)
    if depth > 4:
        return False
    if isinstance(value, dict):
        return all(plain(k) and plain(v, depth + 1) for k, v in value.items())
    if isinstance(value, types.SimpleNamespace):
        return all(plain(v, depth + 1) for v in vars(value).values())
    if dataclasses.is_dataclass(value) and not hasattr(value, "__dict__"):  # slots, which cannot be watched
        return all(plain(getattr(value, f.name, None), depth + 1) for f in dataclasses.fields(value))
    return isinstance(value, (list, tuple, set, frozenset)) and all(plain(v, depth + 1) for v in value)


def is_called(value: Any) -> bool:
    """Whether a value is something to call that cannot be compared in a copy: a partial, a method, a closure."""
    of = value.func if isinstance(value, functools.partial) else value
    if (getattr(of, "__module__", None) or "").startswith("resfx."):  # stands for what recomputes
        return False
    return isinstance(value, (functools.partial, types.FunctionType, types.MethodType))


def kept(value: Any) -> Any:
    """A value as it is now."""
    return value if isinstance(value, ATOMS) else copy.deepcopy(value)


def below(module: nn.Module) -> list[tuple[Any, tuple[str, ...]]]:
    """A tree's modules, and the plain objects that they hold for attributes (configs), each with the way to it."""
    found: list[tuple[Any, tuple[str, ...]]] = []

    def add(value: Any, way: tuple[str, ...], depth: int) -> None:
        if depth > 3 or not is_object(value):
            return
        found.append((value, way))
        for name, inner in list(vars(value).items()):
            add(inner, (*way, name), depth + 1)

    for path, inner in module.named_modules():
        way = tuple(path.split(".")) if path else ()
        found.append((inner, way))
        for name, value in own_attributes(inner):
            add(value, (*way, name), 0)
    return found


def owned_in(module: nn.Module) -> list[tuple[Any, Owned]]:
    """A tree's modules and the objects that they hold, each with all ways to it."""
    found: dict[int, tuple[Any, list[tuple[str, ...]]]] = {}
    for value, way in below(module):
        found.setdefault(id(value), (value, []))[1].append(way)
    return [(value, Owned(tuple(ways))) for value, ways in found.values()]


def way_to(value: Any, wanted: Any, depth: int = 0) -> tuple[str, ...] | None:
    """The attributes that lead from an object to one that it holds."""
    for name, held in vars(value).items() if depth < 3 and hasattr(value, "__dict__") else ():
        if held is wanted:
            return (name,)
        if hasattr(held, "__dict__") and not callable(held) and (rest := way_to(held, wanted, depth + 1)):
            return (name, *rest)
    return None


def parts_of(value: Any, way: str = "", depth: int = 0) -> Iterator[tuple[Any, str]]:
    """The objects with attributes that an object holds, in lists and dicts too, each with the way to it as code."""
    held = getattr(value, "__dict__", {}).items() if not isinstance(value, (list, tuple, dict)) else ()
    found = [(inner, f"{way}.{name}") for name, inner in list(held) if name != WATCH]
    if isinstance(value, dict):
        found += [(inner, f"{way}[{key!r}]") for key, inner in dict.items(value) if type(key) in (str, int)]
    elif isinstance(value, (list, tuple)):
        found += [(inner, f"{way}[{i}]") for i, inner in enumerate(value)]
    for inner, there in found if depth < 4 else ():
        container = isinstance(inner, (list, tuple, dict))
        if container or (is_object(inner) and type(inner).__module__.split(".")[0] not in ("torch", "sympy")):
            if not container:
                yield inner, there
            yield from parts_of(inner, there, depth + 1)
