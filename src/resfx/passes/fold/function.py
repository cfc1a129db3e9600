"""What comes of writing the code of a call: a function, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .plan import Region


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
        new: paths of the modules it calls, below ``resfx`` in the tree.
        source: its text.
    """

    function: Callable[..., Any]
    new: tuple[str, ...]
    source: str
    parts: tuple[tuple[str, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = tuple(tuple(p.split(".")) for p in self.new)


class Shared(dict[Any, Callable[..., Any]]):
    """Generated functions by their text and the objects it names."""
