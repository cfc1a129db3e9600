"""A config's fields and a function's arguments, held against names and annotations before anything is done."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union

from resfx.errors import OptionError, meant, nearest


def refuse_unknown(cls: type, values: Sequence[Any], given: Iterable[str]) -> None:
    """Raise :class:`OptionError` for a keyword that a config does not take, with the nearest of its options first."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
        return
    names = [p.name for p in parameters]
    if len(values) > sum(p.kind is not p.KEYWORD_ONLY for p in parameters):
        raise OptionError(f"{cls.__name__} takes its options by name", f"{values[0]!r:.60} without one",
                          f"one of: {', '.join(names)}")  # fmt: skip
    _refuse_strange(given, names, f"{cls.__name__} has no option", "its options:", f"{cls.__name__}({{}}=...)")


def refuse_wrong_types(config: Any) -> None:
    """Raise :class:`OptionError` for a value that its field does not take; numbers of other libraries become plain."""
    kinds = kinds_of(type(config))  # type: ignore[arg-type]
    for field in dataclasses.fields(config):
        if field.name not in kinds:
            continue
        value = plain(getattr(config, field.name))
        if not fits(value, kinds[field.name]):
            default, near = field.default, meant(str(value), _texts(kinds[field.name]))
            remedy = "see its docstring" if default is dataclasses.MISSING else f"its default is {default!r}"
            raise OptionError(
                f"{type(config).__name__}: {field.name} must be {describe(kinds[field.name])}, not {value!r}",
                f"a {type(value).__name__}", f"{field.name}={near!r}" if near else remedy,
            )  # fmt: skip
        object.__setattr__(config, field.name, value)


def wrong(config: Any, field: str, must: str, try_: str = "") -> OptionError:
    """The error for an option whose type is right and whose value is not.

    Args:
        must: what the value has to be, such as ``"eps must be positive"``.
        try_: what would do; the field's default if not said.
    """
    if not try_:
        default = {f.name: f.default for f in dataclasses.fields(config)}[field]
        try_ = f"{field}={default!r}, the default"
    return OptionError(f"{type(config).__name__}: {must}", f"{field}={getattr(config, field)!r:.60}", try_)


def refuse_idle(config: Any, fields: Sequence[str], why: str, try_: str = "") -> None:
    """Raise :class:`OptionError` for the first of ``fields`` that is not at its default, where nothing would read it.

    Args:
        why: what comes after the field's name.
        try_: as for :func:`wrong`.
    """
    for field in fields:
        if getattr(config, field) != getattr(type(config), field):
            raise wrong(config, field, f"{field} {why}", try_)


def refuse_wrong_arguments(function: Callable[..., Any], **given: Any) -> None:
    """Raise :class:`OptionError` for an argument that is not of its annotated type, with the types that are."""
    kinds = kinds_of(function)
    for name, value in given.items():
        if name in kinds and not fits(plain(value), kinds[name]):
            near = meant(str(value), _texts(kinds[name]))
            default = inspect.signature(function).parameters[name].default
            remedy = "see its docstring" if default is inspect.Parameter.empty else f"{name}={default!r}, the default"
            raise OptionError(
                f"{function.__name__}: {name} must be {describe(kinds[name])}",
                f"{value!r:.60}, a {type(value).__name__}", f"{name}={near!r}" if near else remedy,
            )  # fmt: skip


def refuse_wrong_options(
    caller: str, function: Callable[..., Any], options: Mapping[str, Any], more: Sequence[str] = ()
) -> None:
    """Raise :class:`OptionError` for options that ``caller`` hands on to a function that would not take them.

    Args:
        more: keywords that the function takes without naming them in its signature.
    """
    parameters = inspect.signature(function).parameters.values()
    names = [*(p.name for p in parameters if p.kind is p.KEYWORD_ONLY), *more]
    _refuse_strange(options, names, f"{caller} takes no argument", f"{function.__name__} takes", "{}=...")
    refuse_wrong_arguments(function, **options)


def _refuse_strange(given: Iterable[str], names: Sequence[str], asked: str, found: str, spelt: str) -> None:
    """Raise for the first keyword that is not one of ``names``; ``spelt`` is how the one that was meant is written."""
    for name in given:
        if name not in names:
            near = meant(name, names)
            raise OptionError(f"{asked} {name!r}", f"{found} {', '.join(nearest(name, names))}",
                              spelt.format(near) if near else "one of these")  # fmt: skip


@functools.cache
def kinds_of(cls: Any) -> dict[str, Any]:
    """The types of a config's fields or a function's arguments; none where an annotation cannot be read."""
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):  # a class made in a function, with names that only it knows
        return {}


def plain(value: Any) -> Any:
    """Whole and real numbers as Python's own, whoever made them."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type. Types that are not known here take anything."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return any(type(value) is type(allowed) and value == allowed for allowed in inner)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if origin in (tuple, list):
        if not isinstance(value, origin):
            return False
        if origin is tuple and inner and not (len(inner) == 2 and inner[1] is Ellipsis):
            return len(value) == len(inner) and all(map(fits, value, inner))
        return not inner or all(fits(v, inner[0]) for v in value)
    if origin is Sequence:
        return (
            isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and all(fits(v, *inner) for v in value)
        )
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if origin is type:
        return isinstance(value, type) and (inner[0] is Any or issubclass(value, inner[0]))
    if origin is os.PathLike:
        return isinstance(value, os.PathLike)
    if origin is Callable:
        return callable(value)
    if kind in (bool, str, type(None)):
        return type(value) is kind
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    try:
        return isinstance(value, kind)
    except TypeError:  # no class, or a protocol
        return True


def _texts(kind: Any) -> list[str]:
    """The texts that a type allows by name."""
    return [t for t in typing.get_args(kind) if isinstance(t, str)] if typing.get_origin(kind) is Literal else []


def describe(kind: Any) -> str:
    """A type in words, such as ``a whole number`` or ``one of ('sum', 'mean')``."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {inner}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, inner))
    if origin in (tuple, list, Sequence):
        name = origin.__name__.lower()
        return f"a {name} of {describe(inner[0])}" if inner else f"a {name}"
    if origin is Mapping:
        return f"a mapping of {describe(inner[0])} to {describe(inner[1])}"
    if origin in (os.PathLike, Callable, type):
        return {os.PathLike: "a path", Callable: "a function", type: "a class"}[origin]
    if kind in (Any, Callable):
        return "anything" if kind is Any else "a function"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "None"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
