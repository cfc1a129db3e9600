"""A method's config from ``field=value`` texts, read by the types of its dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, Union

from resfx.errors import nearest
from resfx.methods.base import Method, Start, methods


class SettingError(ValueError):
    """A setting that the method does not have, or a value that its field does not take."""


def config_of(method: str, settings: Sequence[str] = (), start: Start | None = None) -> Method:
    """The config of a method with some fields set.

    Args:
        method: a name of :func:`resfx.methods.base.methods`.
        settings: texts such as ``"beta_init=0.5"`` or ``"target=stream"``.
        start: its ``start``, where given.

    Raises:
        SettingError: for an unknown field, an unreadable value, or values that the method refuses.
    """
    cls = methods()[method]
    kinds = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    values: dict[str, Any] = {} if start is None else {"start": start}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise SettingError(f"{setting!r} is not FIELD=VALUE")
        if name not in names:
            raise SettingError(f"{method} has no field {name!r}; there are: {', '.join(nearest(name, names))}")
        try:
            values[name] = read_value(text, kinds[name])
        except ValueError as error:
            raise SettingError(f"{name}={text}: {error}") from error
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise SettingError(f"{method}: {error}") from error


def read_value(text: str, kind: Any) -> Any:
    """A value of a type annotation from text; sequences are separated by commas.

    Raises:
        ValueError: if the text does not fit.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        for allowed in inner:
            if text == str(allowed):
                return allowed
        raise ValueError(f"must be one of {', '.join(map(str, inner))}")
    if origin in (Union, types.UnionType):
        return _first_that_reads(text, inner)
    if origin in (tuple, list):
        parts = [p.strip() for p in text.split(",") if p.strip()]
        fixed = origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis)
        if fixed and len(parts) != len(inner):
            raise ValueError(f"needs {len(inner)} values separated by commas")
        found = [read_value(p, inner[i] if fixed else inner[0]) for i, p in enumerate(parts)]
        return origin(found)
    if kind is type(None):
        if text.lower() != "none":
            raise ValueError("must be none")
        return None
    if kind is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in known:
            raise ValueError("must be true or false")
        return known[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"must be {'a whole number' if kind is int else 'a number'}") from None
    if kind in (str, Any):
        return text
    raise ValueError("cannot be given as text; use the Python interface")


def _first_that_reads(text: str, kinds: Sequence[Any]) -> Any:
    reasons = []
    for kind in sorted(kinds, key=lambda k: k is str):
        try:
            return read_value(text, kind)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(" or ".join(dict.fromkeys(reasons)))
