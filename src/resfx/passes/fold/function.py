"""What comes of writing the code of a call: a function, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from resfx.errors import VariantError
from resfx.passes.capture.marking.record import Act

from .guard import Always, Expected, Form, Guard
from .region import Region


class NotExpressible(Exception):
    """A call cannot be made with what is at hand where it stands.

    Attributes:
        region: the call; its operators can join the code around it.
    """

    def __init__(self, what: str, region: Region | None = None) -> None:
        super().__init__(what)
        self.region = region


@dataclass(eq=False)
class Code:
    """The code of one call.

    Attributes:
        function: ``forward(self, new, handed, ...)``, shared by all calls of the same text.
        new: the ways to the new modules that it calls: the application's key and the names from its module's own part
            of the bank; an empty key and the names from the whole bank where one stands elsewhere.
        source: its text.
        path: of the module that it was written for.
        expected: where the call around it chooses it, what it takes for granted of its arguments.
    """

    function: Callable[..., Any]
    new: tuple[tuple[str, ...], ...]
    source: str
    path: str = ""
    expected: Expected | None = None

    def __getitem__(self, index: int) -> Any:
        """Raise: what the code makes for others is read, and it has not run.

        Raises:
            VariantError: naming the module.
        """
        raise VariantError(
            f"cannot go on after {self.path}", "what was put in its place or around it since does not run its rewritten"
            " code, which makes values that others read",
            "call the forward that was there, with all its arguments, or rewrite resfx.original(model) again",
        )  # fmt: skip

    def like(self, other: Code) -> bool:
        """Whether another does the same in any module."""
        return self.function is other.function and self.new == other.new


@dataclass(eq=False)
class Folded:
    """A call whose module runs code of its own from now on.

    Attributes:
        path: the module, as the captured tree names it.
        code: what it runs.
        guard: what that was made for; ``None`` where the code around it says so.
        handing: whether no method made any of the code: it hands values on.
        acts: what the module's own code does that this does not.
    """

    path: str
    code: Code
    guard: Guard | Always | None
    handing: bool
    acts: frozenset[Act] = frozenset()


class Shared(dict[Any, Callable[..., Any]]):
    """Generated functions by their text and the objects it names.

    Attributes:
        forms: those of results, by what they hold them to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forms: dict[Any, Form] = {}

    def form(self, new: Form) -> Form:
        """A form, or the one that is like it: equal blocks have equal code."""
        try:
            return self.forms.setdefault(new.key, new)
        except TypeError:  # of what cannot be hashed
            return new
