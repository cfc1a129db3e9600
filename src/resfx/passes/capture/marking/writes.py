"""What a call does beside its result while it is traced: attributes that it sets, lists and dicts that it adds to."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from resfx.errors import CaptureError
from resfx.passes.capture.structure import Flattener, Template, innermost
from resfx.passes.holdings import CONTAINERS, Item, parts, text_of

from .record import Write
from .watch import Found, own, plain

Place = Template  # ``owned`` or ``known``: what has the attribute


_GONE: Any = object()


class _Seen(NamedTuple):
    """What has the attribute, or the container that it holds; and what that was."""

    value: Any
    before: Any


class Written:
    """What one call has done so far. Code of calls inside it answers for itself.

    Attributes:
        lost: objects that hold other values now, and it cannot be told which.
    """

    def __init__(self) -> None:
        self.lost: list[Place] = []
        self._sets: dict[tuple[Place, str], _Seen] = {}
        self._held: dict[tuple[Place, str], list[tuple[str, _Seen]]] = {}

    def set(self, value: Any, place: Place, name: str, before: Any) -> None:
        """An attribute of ``value``, which is at ``place``, was set."""
        self._sets.setdefault((place, name), _Seen(value, before))
        self._held.pop((place, name), None)

    def has(self, place: Place, name: str) -> bool:
        """Whether an attribute was set."""
        return (place, name) in self._sets

    def read(self, place: Place, name: str, value: Any) -> None:
        """An attribute was read: what it holds may be added to."""
        if type(value) in CONTAINERS and (place, name) not in self._sets and (place, name) not in self._held:
            self._held[place, name] = _seen_in(value)

    def settle(self, inner: Written) -> None:
        """A call inside has ended: what it did is not done again."""
        for key in inner._held.keys() & self._held.keys():
            ((_, seen), *_) = inner._held[key]
            self._held[key] = _seen_in(seen.value)

    def writes(self, flat: Flattener) -> list[Write]:
        """What the call did; tensors in it are appended to the leaves of ``flat``."""
        found = [Write(place, "", "", None) for place in self.lost]
        for (place, name), (value, before) in self._sets.items():
            now = own(value).get(name, Found.MISSING)
            same = now is before or (plain(now) and type(now) is type(before) and now == before)
            if now is not Found.MISSING and not same:
                found.append(Write(place, name, "", _taken(flat, now)))
        for (place, name), every in self._held.items():
            for way, (container, before) in every:
                for inner, how, value in _changes(container, before):
                    found.append(Write(place, f"{name}{way}{inner}", how, _taken(flat, value)))
        return found


class State:
    """What an object held when this was made, to be held against what it holds later."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._template, self._leaves = _taken_apart(value)

    def altered(self) -> bool:
        """Whether it holds something else now. What is written into its tensors is no matter of this."""
        try:
            template, leaves = _taken_apart(self._value)
        except CaptureError:  # it holds what it could not hold before
            return True
        return template != self._template or not all(a is b for a, b in zip(leaves, self._leaves, strict=True))


def replaced(values: Sequence[Any], firsts: Sequence[Sequence[Any]]) -> set[tuple[int, int]]:
    """What objects no longer hold of what they held first: ``(object, leaf)``, by number."""
    gone: set[tuple[int, int]] = set()
    for number, (value, first) in enumerate(zip(values, firsts, strict=True)):
        try:
            held = {id(leaf) for leaf in _taken_apart(value)[1]}
        except CaptureError:
            held = set()
        gone |= {(number, i) for i, leaf in enumerate(first) if id(leaf) not in held}
    return gone


def _taken_apart(value: Any) -> tuple[Template, list[Any]]:
    flat = Flattener()
    return flat.state(value), flat.leaves


def _seen_in(value: Any) -> list[tuple[str, _Seen]]:
    return [(way, _Seen(container, copy.copy(container))) for way, container in _containers(value)]


def _containers(value: Any, way: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """A container and those in it, each with the way to it as code."""
    if type(value) in CONTAINERS:
        yield way, value
    if depth < 3 and isinstance(value, (list, tuple, dict)):
        for step, inner in parts(value):
            if isinstance(step, Item) and type(step.key) not in (str, int):
                continue
            yield from _containers(inner, way + text_of((step,)), depth + 1)


def _changes(now: Any, before: Any) -> Iterator[tuple[str, str, Any]]:
    """What makes of a container what it is now: the way to an item, how it is changed, and the value; ``_GONE`` for the
    value where none does."""
    if isinstance(now, dict):
        whole = all(k in now for k in before)
        added = {k: v for k, v in now.items() if k not in before or before[k] is not v}
        if added or not whole:
            yield "", "update", added if whole else _GONE
    elif isinstance(now, (list, deque)):
        items, known = list(now), list(before)
        if len(items) < len(known):
            yield "", "", _GONE
            return
        for i, (a, b) in enumerate(zip(known, items, strict=False)):
            if a is not b:
                yield f"[{i}]", "", b
        if items[len(known) :]:
            yield "", "extend", items[len(known) :]
    elif now != before:
        yield "", "", _GONE


def _taken(flat: Flattener, value: Any) -> Template | None:
    """A value as a template; ``None`` for one that belongs to the trace and to nobody else."""
    if value is _GONE or not (plain(value) or isinstance(value, (torch.Tensor, torch.SymInt, list, tuple, dict))):
        return None
    known = len(flat.leaves)
    try:
        template = flat.flatten(value)
    except CaptureError:
        del flat.leaves[known:]
        return None
    if all(part[0] in ("tensor", "int", "met") or plain(part[2:]) for part in innermost(template)):
        return template
    del flat.leaves[known:]
    return None
