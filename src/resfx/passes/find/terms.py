"""The two terms of an addition, however it is written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import fx


class Slot(NamedTuple):
    """Where an operand stands: an argument of ``holder``, or the item ``place`` of a list that is one.

    It is read when it is needed: an earlier rewrite may have put another node there.
    """

    holder: fx.Node
    key: int | str
    place: int | None = None

    def read(self) -> Any:
        """What stands there now."""
        value = self.holder.args[self.key] if isinstance(self.key, int) else self.holder.kwargs[self.key]
        return value if self.place is None else value[self.place]  # type: ignore[index]


@dataclass(frozen=True)
class Term:
    """``weight * value``, or ``weight * (a * b)``.

    Attributes:
        parts: where the value stands, or both factors in order.
        product: how the factors are multiplied: an ``operator`` or ``torch`` function of two tensors.
        carrier: the factor that takes the place of the value in a search: an activation rather than its gain.
    """

    parts: tuple[Slot, ...]
    weight: float = 1
    product: Callable[..., Any] | None = None
    carrier: int = 0

    @property
    def value(self) -> fx.Node:
        """The node that the term takes, as it is now."""
        node: fx.Node = self.parts[self.carrier].read()
        return node

    @property
    def is_plain(self) -> bool:
        """Whether the term is its value."""
        return self.weight == 1 and self.product is None

    def emit(self, graph: fx.Graph) -> fx.Node:
        """The term as a node of its own, at the graph's point of insertion; nothing new where it is plain."""
        if self.product is None:
            node = self.value
        else:
            node = graph.call_function(self.product, tuple(part.read() for part in self.parts))
        if self.weight == -1:
            return graph.call_function(operator.neg, (node,))
        return node if self.weight == 1 else graph.call_function(operator.mul, (node, self.weight))


@dataclass(frozen=True)
class Reading:
    """An addition, read as a shortcut and a branch."""

    node: fx.Node
    shortcut: Term
    branch: Term
    joins: tuple[fx.Node, ...] = ()

    @property
    def mixes(self) -> bool:
        """Whether the add itself multiplies matrices."""
        return self.branch.product is torch.matmul


@dataclass(frozen=True)
class Sum:
    """An operator that adds.

    Attributes:
        terms: the two terms, in order; empty where they cannot be told apart.
        joins: operators that only join the terms for it, the last one first.
        reason: why not.
        pairs: what it may add to what, where it cannot be taken apart.
    """

    node: fx.Node
    terms: tuple[Term, ...] = ()
    reason: str = ""
    pairs: tuple[tuple[fx.Node, fx.Node], ...] = ()
    joins: tuple[fx.Node, ...] = ()

    @property
    def values(self) -> list[fx.Node]:
        """What the terms take."""
        return [term.value for term in self.terms]

    def readings(self) -> list[Reading]:
        """Each way to read it. A product cannot be the shortcut, and either of its factors may be the branch's end."""
        found: list[Reading] = []
        for shortcut, branch in (self.terms, self.terms[::-1]) if self.terms else ():
            if shortcut.product is None:
                ends = [replace(branch, carrier=i) for i in range(len(branch.parts))]
                found += [Reading(self.node, shortcut, end, self.joins) for end in ends]
        return found
