"""What the generated code of a call was made for, and whether another call is like it.

Only what the code itself reads counts: arguments that it hands on to the user's own modules may be anything, and what
those modules are set to is theirs. Plain attributes that were read while the code was traced are compared at each call.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from resfx._torch import any_autocast, held_buffers, held_modules, held_parameters
from resfx.errors import VariantError
from resfx.passes.capture.marking.contents import Contents
from resfx.passes.capture.marking.watch import Found
from resfx.passes.capture.structure import Flattener, Template, varied
from resfx.runtime.told import told_by_keyword

from .likeness import Likeness

Shape = Callable[[Sequence[torch.Tensor]], bool]
Way = tuple[str, ...]  # attributes and submodules, one after the other


class _Nowhere:
    """Stands for what is not there: a class, which copies of a guard share."""


_NOWHERE: Any = _Nowhere


@dataclass(frozen=True)
class Always:
    """What a graph that the user has is good for: any call, or any in one training mode.

    Attributes:
        flags: ``training`` of every module; ``None`` for any.
    """

    flags: tuple[bool, ...] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def differs(self, module: nn.Module, given: dict[str, Any]) -> str:
        """In what a call is unlike the traced one: the mode of the modules, or nothing."""
        same = self.flags is None or self.flags == tuple([m.training for m in module.modules()])
        return "" if same else "training mode"

    def same(self, other: Any) -> bool:
        """Whether another is good for the same calls."""
        return isinstance(other, Always) and self.flags == other.flags

    def varied(self, given: dict[str, Any]) -> set[tuple[type, str]]:
        """Nothing."""
        return set()


@dataclass(eq=False)
class Guard:
    """What one variant was made for.

    Attributes:
        arguments: a template for each parameter.
        objects: classes of the stateful objects that arguments refer to, by number; with the whole state where the
            code looked into one.
        free: slots whose values may be anything: functions that are kept whole give them.
        used: which tensors the code computes with: slots, or ``(object, place in it)``.
        kinds: their types and devices.
        shapes: a predicate over them.
        reads: attributes that the code's own Python read: the way from the module, and what was there.
        held: where it read objects that have attributes of their own: the way, the class, and another way to the same.
        lists: lists of modules that the code goes through, the way to each, and the names in it.
        shared: pairs of ways to one module or tensor.
        told: modules that it tells what to run, the way to each, and whether by a keyword.
        autocast: as it was.
        grad: whether it is good for calls with gradients.
        mode: whether calls have to record gradients, where the code's own Python asked for it; ``None`` where not.
        varying: integer fields of objects that are inputs; shared with the rewriting.
        outdated: whether a call was met that the code turned out not to be made for.
    """

    arguments: dict[str, Any]
    objects: dict[int, tuple[type, Template | None]]
    free: frozenset[int]
    used: tuple[Any, ...]
    kinds: tuple[tuple[torch.dtype, torch.device], ...]
    shapes: Shape
    reads: tuple[tuple[Way, Any], ...]
    held: tuple[tuple[Way, type, Way], ...]
    lists: tuple[tuple[Way, tuple[str, ...]], ...]
    shared: tuple[tuple[Way, Way], ...]
    told: tuple[tuple[Way, bool], ...]
    autocast: tuple[Any, ...]
    grad: bool
    mode: bool | None
    varying: set[tuple[type, str]]
    outdated: bool = False

    def __post_init__(self) -> None:
        likeness = Likeness(self.arguments, self.objects, self.free, self.used, self.kinds)
        self._like, self._constants = likeness.function, likeness.constants
        self._attributes = Attribute.tree(self.reads, self.held, self.lists, self.told)
        self._shared = [*self.shared, *((way, other) for way, _, other in self.held if other != way)]

    def same(self, other: Any) -> bool:
        """Whether another guard accepts the same calls."""
        parts = attrgetter(
            "arguments", "objects", "free", "used", "kinds", "shapes", "reads", "held", "lists", "shared", "told",
            "autocast", "grad", "mode",
        )  # fmt: skip
        return isinstance(other, Guard) and parts(self) == parts(other)

    def differs(self, module: nn.Module, given: dict[str, Any]) -> str:
        """In what a call, its arguments by name, is unlike the one that the code was made for; or nothing."""
        if self.outdated:
            return "result of a call in it"
        if self.autocast != autocast_state():
            return "autocast"
        if not (self.grad and self.mode is None) and torch.is_grad_enabled() is not (self.grad and bool(self.mode)):
            return "gradients"
        tensors = self._like(given, self._constants)
        if type(tensors) is str:
            return tensors
        if not self.shapes(tensors):
            return "sizes"
        if (changed := self._attributes.changed(module)) is not None:
            return f"attribute {'.'.join(changed)!r}"
        for way, other in self._shared:
            if look_up(module, way) is not look_up(module, other):
                return f"attribute {'.'.join(way)!r}"
        return ""

    def varied(self, given: dict[str, Any]) -> set[tuple[type, str]]:
        """Integer fields of objects in which a call differs from the one the code was made for, if in nothing else."""
        fields: set[tuple[type, str]] = set()
        for name, template in self.arguments.items():
            if isinstance(template, tuple) and template[0] == "known":
                state = self.objects[template[1]][1]
                if state is not None and type(given[name]) is self.objects[template[1]][0]:
                    fields |= varied(state, Flattener(varying=self.varying).state(given[name])) or set()
        return fields


def autocast_state() -> tuple[Any, ...]:
    """What autocast does on each kind of device."""
    if not any_autocast():
        return ()
    return tuple([(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)])


def names_in(module: Any) -> tuple[str, ...]:
    """The names of a module's own submodules, less those of new modules."""
    names = tuple(held_modules(module)) if isinstance(module, nn.Module) else ()
    return names if "resfx" not in names else tuple([n for n in names if n != "resfx"])


class Expected:
    """What code takes for granted of arguments that a call around it chose, or of a result: all but tensors is written
    into it.

    Args:
        arguments: a template for each parameter.
        objects: classes of the stateful objects among them, by number.
        free: slots that the code only hands on.
        axes: how many the tensors have, by slot, where the code depends on it.
    """

    def __init__(self, arguments: dict[str, Any], objects: dict[int, type], free: frozenset[int],
                 axes: Mapping[int, int]) -> None:  # fmt: skip
        known = {number: (cls, None) for number, cls in objects.items()}
        likeness = Likeness(arguments, known, free, (), (), axes)
        self._like, self._constants = likeness.function, likeness.constants

    @property
    def key(self) -> Any:
        """The same for what expects the same."""
        return self._like, self._constants

    def differs(self, given: dict[str, Any]) -> str:
        """In what the arguments of a call, by name, are others; or nothing."""
        found = self._like(given, self._constants)
        return found if type(found) is str else ""


class Form:
    """What code takes for granted of the result of a call that it makes: all but tensors is written into it.

    Args:
        name: of the module that is called, from where the code stands.
        expected: the result.

    Attributes:
        guards: of the codes that depend on it.
    """

    def __init__(self, name: str, expected: Expected) -> None:
        self.name, self._expected = name, expected
        self.guards: weakref.WeakSet[Guard] = weakref.WeakSet()

    @property
    def key(self) -> Any:
        """The same for forms that are alike."""
        return self.name, self._expected.key

    def __call__(self, result: Any) -> Any:
        """A result that is as expected. For another, the code is given up: the next call makes a new capture.

        Raises:
            VariantError: naming the module.
        """
        if self._expected.differs({"result": result}):
            for guard in self.guards:
                guard.outdated = True
            raise VariantError(
                f"cannot go on after {self.name}", "its result has another form than when this call was captured: a"
                " number, a text, None, a class, how many parts there are or how many axes a stream has",
                "call again if a module or an attribute was changed: that makes a new capture. A hook or a wrapper can"
                " change values of tensors only",
            )  # fmt: skip
        return result


@dataclass(eq=False)
class Attribute:
    """An attribute or submodule that code depends on, with those beneath it: each is looked up once a call.

    Attributes:
        way: to it.
        value: what was there, if it is compared.
        cls: its class, if that is compared.
        names: of the modules in it, if they are compared.
        children: names of submodules that must be there.
        told: whether the rewritten module there is told what to run by a keyword, if it is told.
        beneath: by name.
    """

    way: Way
    value: Any = _NOWHERE
    cls: type | None = None
    names: tuple[str, ...] | None = None
    children: tuple[str, ...] = ()
    told: bool | None = None
    beneath: dict[str, Attribute] = field(default_factory=dict)

    @classmethod
    def tree(cls, reads: Iterable[tuple[Way, Any]], held: Iterable[tuple[Way, type, Way]],
             lists: Iterable[tuple[Way, tuple[str, ...]]], told: Iterable[tuple[Way, bool]]) -> Attribute:  # fmt: skip
        """All that a guard compares, under the module itself."""
        root = cls(())
        for way, value in reads:
            if value is Found.CHILD:
                root._at(way[:-1]).children += way[-1:]
            else:
                root._at(way).value = value
        for way, kind, _ in held:
            root._at(way).cls = kind
        for way, names in lists:
            root._at(way).names = names
        for way, keyword in told:
            root._at(way).told = keyword
        return root

    def _at(self, way: Way) -> Attribute:
        at = self
        for i, name in enumerate(way):
            at = at.beneath.setdefault(name, Attribute(way[: i + 1]))
        return at

    def changed(self, found: Any) -> Way | None:
        """The way to the first that is another now; ``None`` if all are as they were.

        Args:
            found: what is there now.
        """
        if self.value is not _NOWHERE and not alike(found, self.value):
            return self.way
        if self.cls is not None and type(found) is not self.cls:
            return self.way
        if self.names is not None and names_in(found) != self.names:
            return self.way
        if self.told is not None and told_by_keyword(found) is not self.told:
            return self.way
        if self.children and (gone := _first_gone(found, self.children)):
            return (*self.way, gone)
        for name, below in self.beneath.items():
            if type(below.value) is Found:
                if not is_found(found, name, below.value):
                    return below.way
                continue
            now = held_modules(found).get(name) if below.told and isinstance(found, nn.Module) else None  # quicker
            now = step(found, name) if now is None else now
            if (
                not (below.beneath or below.children)
                and below.cls is below.names is None
                and (below.value is now if below.told is None else below.told and told_by_keyword(now))
            ):
                continue  # most of them, without a call
            if (way := below.changed(now)) is not None:
                return way
        return None


def look_up(module: Any, way: Way) -> Any:
    """What a way of attributes and submodules leads to; ``None`` if nowhere."""
    for name in way:
        module = step(module, name)
    return module


def alike(now: Any, before: Any) -> bool:
    """Whether what was read of an attribute is what it was: equal, and of the same type."""
    if type(before) is Contents:
        return before.is_in(now)
    if type(now) is not type(before):
        return False
    if type(now) is functools.partial:
        return now.func == before.func and now.args == before.args and now.keywords == before.keywords
    return bool(now == before)


def is_found(holder: Any, name: str, how: Found) -> bool:
    """Whether an attribute is found as it was: not at all, as a parameter, or as a method of the class."""
    if how in (Found.PRESENT, Found.CHILD):
        return step(holder, name) is not None
    if isinstance(holder, nn.Module):
        inner = list(held_modules(holder).values())
        if len(inner) == 1 and "_resfx_unit" in vars(inner[0]) and "_resfx_unit" not in vars(holder):
            holder = inner[0]  # which is wrapped
    if how is Found.METHOD:
        return name not in getattr(holder, "__dict__", ())
    if not isinstance(holder, nn.Module):
        return not hasattr(holder, name)
    places = (vars(holder), held_parameters(holder), held_buffers(holder), held_modules(holder))
    return not any(name in held for held in places) and not hasattr(type(holder), name)


def _first_gone(holder: Any, children: tuple[str, ...]) -> str:
    """The first of some submodules that is not there, or has become ``None``; or nothing."""
    if isinstance(holder, nn.Module) and None not in map(held_modules(holder).get, children):
        return ""  # most often
    return next((name for name in children if step(holder, name) is None), "")


def step(holder: Any, name: str) -> Any:
    """One attribute or submodule, through what is wrapped around them; ``None`` if there is none."""
    if type(holder) is nn.ModuleList and (item := held_modules(holder).get(name)) is not None:  # much the quickest
        return item
    found = getattr(holder, name, _NOWHERE)
    while found is _NOWHERE and isinstance(holder, nn.Module) and len(held_modules(holder)) == 1:
        (holder,) = held_modules(holder).values()
        found = getattr(holder, name, _NOWHERE)
    return None if found is _NOWHERE else found
