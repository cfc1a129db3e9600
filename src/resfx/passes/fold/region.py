"""One call of a rewritten graph, and what crosses its border."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from resfx.passes.capture.marking.record import CallRecord

from .guard import Form


@dataclass(eq=False)
class Region:
    """One call and what the rewritten graph has of it.

    Attributes:
        enters, leaves: its marks by slot.
        nodes: of its own code, in order; calls inside are regions of their own.
        inner: the calls made from its own code, in order.
        taken: values from outside that are not among its arguments, in order.
        handed: values that are read outside and are not among its results, in order.
        held: numbers of stateful objects from outside that are not among its arguments.
        dissolved: calls whose operators were taken into this one's code.
        forms: what its code takes for granted of the results of calls.
        generated: whether it runs code of its own.
        passed_on: whether the call around it says which code to run, and hands over what it takes.
    """

    call: CallRecord
    outer: Region | None
    enters: dict[int, fx.Node] = field(default_factory=dict)
    leaves: dict[int, fx.Node] = field(default_factory=dict)
    nodes: list[fx.Node] = field(default_factory=list)
    inner: list[Region] = field(default_factory=list)
    taken: list[fx.Node] = field(default_factory=list)
    handed: list[fx.Node] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    dissolved: set[CallRecord] = field(default_factory=set)
    forms: list[Form] = field(default_factory=list)
    generated: bool = False
    passed_on: bool = False

    @property
    def path(self) -> str | None:
        """The module's qualified name; ``None`` for a function."""
        return self.call.target if isinstance(self.call.target, str) else None

    @property
    def name(self) -> str:
        """For messages."""
        return self.call.name or "the model"

    @property
    def closed(self) -> bool:
        """Whether nothing crosses its border but arguments and results."""
        return not (self.taken or self.handed or self.held)

    def around(self) -> Iterator[Region]:
        """This region and those around it, outwards."""
        region: Region | None = self
        while region is not None:
            yield region
            region = region.outer

    def told(self) -> Iterator[Region]:
        """The calls whose code this one's says, itself or through another of them."""
        for inner in self.inner:
            if inner.generated and inner.passed_on:
                yield inner
                yield from inner.told()

    def depends_outside(self) -> bool:
        """Whether generated code of it, or of a call within that it tells, read attributes that no way from its module
        leads to."""
        own = tuple(self.path.split(".")) if self.path else ()
        read = {owner for r in (self, *self.told()) for owner, _ in r.call.reads}
        return any(owner.way_from(own) is None for owner in read)

    def below(self) -> Iterator[Region]:
        """This region and all within."""
        yield self
        for inner in self.inner:
            yield from inner.below()
