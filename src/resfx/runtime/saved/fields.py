"""Reading data that nobody vouches for: every value with its name, so that an error says which one is wrong."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from resfx.errors import SaveError
from resfx.methods.base import Method
from resfx.methods.options import fits, kinds_of

LARGEST = 2**31
"""Whole numbers are smaller unless said otherwise."""


@dataclass(frozen=True)
class Field:
    """One value of a recipe.

    Attributes:
        name: as in ``applications[0].method.start``; ``""`` for the whole.
        where: whose recipe it is.
    """

    value: Any
    name: str
    where: str

    def fail(self, found: str, try_: str = "save it again") -> NoReturn:
        """Raise ``SaveError``: this field is wrong."""
        raise SaveError(f"cannot load {self.where}", f"recipe.json: {self.name}: {found}" if self.name else
                        f"recipe.json: {found}", try_)  # fmt: skip

    def _want(self, kind: str) -> NoReturn:
        self.fail(f"{kind} is wanted, not {_short(self.value)}")

    def any_entries(self) -> dict[str, Field]:
        """The entries of an object."""
        if not isinstance(self.value, dict):
            self._want("an object")
        start = f"{self.name}." if self.name else ""
        return {key: Field(value, f"{start}{key}", self.where) for key, value in self.value.items()}

    def entries(self, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Field]:
        """The entries of an object that has all of ``required``, perhaps some of ``optional``, and no others."""
        found = self.any_entries()
        if missing := [key for key in required if key not in found]:
            self.fail(f"it lacks {', '.join(missing)}")
        if extra := [key for key in found if key not in (*required, *optional)]:
            self.fail(f"it has {', '.join(extra)}, which mean nothing here")
        return found

    def items(self, least: int = 0, most: int | None = None) -> list[Field]:
        """The items of a list of a certain length."""
        if not isinstance(self.value, list):
            self._want("a list")
        if len(self.value) < least or (most is not None and len(self.value) > most):
            self.fail(f"it has {len(self.value)} items")
        return [Field(item, f"{self.name}[{i}]", self.where) for i, item in enumerate(self.value)]

    def text(self) -> str:
        """A string."""
        return self.value if isinstance(self.value, str) else self._want("a string")

    def flag(self) -> bool:
        """True or false."""
        return self.value if isinstance(self.value, bool) else self._want("true or false")

    def number(self, low: int, high: int = LARGEST) -> int:
        """A whole number within bounds."""
        if type(self.value) is not int or not low <= self.value <= high:
            self._want(f"a whole number from {low} to {high}")
        return self.value

    def one_of(self, *choices: str) -> str:
        """One of a few words."""
        return self.value if self.value in choices else self._want(" or ".join(choices))

    def digest(self) -> str:
        """A SHA-256 sum."""
        return self.value if re.fullmatch(r"[0-9a-f]{64}", self.text()) else self._want("a SHA-256 sum")

    def plain(self) -> Any:
        """A value without parts."""
        if self.value is None or isinstance(self.value, (bool, int, float, str)):
            return self.value
        return self._want("a plain value")

    def name_of_module(self) -> str:
        """A name that a submodule can have."""
        if not self.text() or "." in self.value or hasattr(nn.Module(), self.value):
            self._want("the name of a bank of modules")
        return self.value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def config_of(field: Field, known: Mapping[str, type[Method]], strict: bool) -> Method:
    """The config of a method.

    Args:
        known: methods by name.
        strict: every option of the method must be there; else those that are missing have their defaults.
    """
    given = field.any_entries()
    if "method" not in given:
        field.fail("it lacks method")
    name = given.pop("method").text()
    if name not in known:
        raise SaveError(f"cannot load {field.where}", f"it uses a method {name!r} that is not known here",
                        f"load(..., custom={{{name!r}: YourMethod}})")  # fmt: skip
    options = [f.name for f in dataclasses.fields(known[name]) if f.init]
    field.entries(["method", *(options if strict else ())], options)
    kinds = kinds_of(known[name])  # type: ignore[arg-type]
    values = {option: _value(entry.value) for option, entry in given.items()}
    for option, entry in given.items():
        value = values[option]
        if not fits(value, kinds.get(option, Any)) or any(abs(n) >= LARGEST for n in _numbers(value)):
            entry.fail(f"{_short(entry.value)} is no value of this option of {name}")
    try:
        return known[name](**values)
    except (TypeError, ValueError) as error:
        field.fail(f"a damaged method: {error}")


def _value(value: Any) -> Any:
    """A value from JSON as options hold it: lists are tuples there."""
    return tuple(map(_value, value)) if isinstance(value, list) else value


def _numbers(value: Any) -> list[int]:
    """The whole numbers in a value."""
    if isinstance(value, tuple):
        return [n for part in value for n in _numbers(part)]
    return [value] if isinstance(value, int) else []
