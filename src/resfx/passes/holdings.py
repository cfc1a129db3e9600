"""What modules hold beside parameters, buffers and submodules: plain attributes, and what lies in those.

A mask in a dict, a running mean in an object of one's own, the last states in a list: a model's code reads and writes
them as it does attributes.
"""

from __future__ import annotations

import enum
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)
"""What code writes into beside attributes, and can be given its contents again."""

ATOMS = (bool, int, float, complex, str, bytes, type(None), enum.Enum)
LASTING = (type, torch.dtype, torch.device, types.BuiltinFunctionType)
"""One object, in a copy of a tree as well."""

OF_TORCH = frozenset(vars(nn.Module()))
"""What a module has for torch's sake: the rest is its author's."""

_DEEPEST = 4
_MAPPINGS = (dict, OrderedDict, defaultdict)
_ORDERED = (list, tuple, deque, *_MAPPINGS)


@dataclass(frozen=True)
class Item:
    """What a part of a value is called that is an item of it (a dict's or a list's), not an attribute."""

    key: Any

    def __str__(self) -> str:
        return str(self.key)


Step = str | Item


def text_of(steps: tuple[Step, ...], key: Callable[[Any], str] = repr) -> str:
    """Steps as code behind what they start from.

    Args:
        key: a key as code.
    """
    return "".join([f"[{key(s.key)}]" if isinstance(s, Item) else f".{s}" for s in steps])


class Place(NamedTuple):
    """Where a tree of modules holds a value.

    Attributes:
        owner: path of the module.
        steps: attributes and items that lead to it from there.
    """

    owner: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.owner}{text_of(self.steps)}".lstrip(".")

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that lead to it, up to the first item."""
        ends = next((i for i, s in enumerate(self.steps) if isinstance(s, Item)), len(self.steps))
        return self.steps[:ends]  # type: ignore[return-value]

    @property
    def way(self) -> tuple[str, ...]:
        """The submodules and attributes that lead to it from the whole tree, up to the first item."""
        return (*(self.owner.split(".") if self.owner else ()), *self.attributes)

    def find(self, tree: nn.Module) -> Any:
        """What is there now.

        Raises:
            AttributeError, LookupError, TypeError: if nothing is.
        """
        value: Any = tree.get_submodule(self.owner)
        for step in self.steps:
            value = value[step.key] if isinstance(step, Item) else getattr(value, step)
        return value


def own_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """A module's plain attributes, but for those of torch and of this library."""
    for name, value in list(vars(module).items()):
        if name not in OF_TORCH and not name.startswith("_resfx"):
            yield name, value


def is_object(value: Any) -> bool:
    """Whether a value has attributes that a model's author gave it: a config, a function object of a class of one's
    own. Not a module, which is met in its own place."""
    if isinstance(value, (*ATOMS, *LASTING, torch.Tensor, nn.Module, types.FunctionType, types.MethodType)):
        return False
    return hasattr(value, "__dict__") and not (
        callable(value) and type(value).__module__.split(".")[0] in ("torch", "functools")
    )


def slots_of(cls: type) -> tuple[str, ...]:
    """The names of a class's slots."""
    names: list[str] = []
    for part in cls.__mro__:
        own = part.__dict__.get("__slots__", ())
        for name in (own,) if isinstance(own, str) else tuple(own):
            hidden = name.startswith("__") and not name.endswith("__")
            names.append(f"_{part.__name__.lstrip('_')}{name}" if hidden else name)
    return tuple(n for n in dict.fromkeys(names) if n not in ("__dict__", "__weakref__"))


def parts(value: Any) -> Iterator[tuple[Step, Any]]:
    """What lies in a container or an object. What a set holds has no name; of objects of Python's own library (a
    logger, a lock), nothing is told."""
    if isinstance(value, _MAPPINGS):
        yield from ((Item(k), v) for k, v in list(dict.items(value)) if _is_key(k))
    elif isinstance(value, (list, tuple, deque)):
        yield from ((Item(i), v) for i, v in enumerate(list(value)))
    elif is_object(value) and (type(value) is types.SimpleNamespace or _root(value) not in sys.stdlib_module_names):
        yield from ((k, v) for k, v in list(vars(value).items()) if not k.startswith("_resfx"))
    elif not hasattr(value, "__dict__") and _root(value) not in ("torch", *sys.stdlib_module_names):
        yield from ((k, getattr(value, k)) for k in slots_of(type(value)) if hasattr(value, k))


def _is_key(key: Any) -> bool:
    """Whether a copy of a tree has the same key."""
    return isinstance(key, (*ATOMS, *LASTING)) or (type(key) is tuple and all(map(_is_key, key)))


def _root(value: Any) -> str:
    return type(value).__module__.split(".")[0]


class Holdings:
    """What the modules of a tree hold at a moment.

    Attributes:
        tensors: each once.
        containers: lists, dicts, sets and deques, each once.
        objects: what else has attributes, each once.
        places: every tensor by each place that has it, those that are attributes of a module too.
    """

    def __init__(self, tree: nn.Module) -> None:
        self._met: dict[int, tuple[Any, list[tuple[tuple[Step, ...], torch.Tensor]]]] = {}
        self.places: list[tuple[Place, torch.Tensor]] = []
        self.tensors: list[torch.Tensor] = []
        self.containers: list[Any] = []
        self.objects: list[Any] = []
        for path, module in tree.named_modules():
            for name, value in own_attributes(module):
                self.places += [(Place(path, (name, *steps)), t) for steps, t in self._in(value, 0)]

    def _in(self, value: Any, depth: int) -> list[tuple[tuple[Step, ...], torch.Tensor]]:
        """The tensors in a value, and the steps to each."""
        if isinstance(value, ATOMS) or depth > _DEEPEST:
            return []
        if id(value) in self._met:
            return self._met[id(value)][1]
        found: list[tuple[tuple[Step, ...], torch.Tensor]] = []
        self._met[id(value)] = value, found  # an object may hold itself
        if isinstance(value, torch.Tensor):
            self.tensors.append(value)
            found.append(((), value))
        elif type(value) in CONTAINERS:
            self.containers.append(value)
        elif not isinstance(value, tuple) and is_object(value):
            self.objects.append(value)
        for step, inner in parts(value):
            found += [((step, *steps), t) for steps, t in self._in(inner, depth + 1)]
        return found
