"""The calls inside a captured call: what every module was handed and gave back, and the nodes at their borders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from resfx.passes.capture.structure import Template


def enter(x: Any, call: int, slot: int) -> Any:
    """Leaf ``slot`` of what a call is handed, as the call sees it."""
    return x


def leave(x: Any, call: int, slot: int) -> Any:
    """Leaf ``slot`` of what a call gives back, as its caller sees it."""
    return x


def keep(x: Any, call: int, slot: int) -> Any:
    """Leaf ``slot`` of what a call sets beside its result: an attribute, an item of a list or dict."""
    return x


def unmarked(node: fx.Node) -> fx.Node:
    """The value that marks carry."""
    while node.target in (enter, leave) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


@dataclass(frozen=True)
class MethodOf:
    """A method of whatever object comes first among the arguments."""

    name: str

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(value, self.name)(*args, **kwargs)


@dataclass(frozen=True)
class Write:
    """What a call's own code does to an attribute of a module, a config or an object that passes through.

    Attributes:
        owner: template of what has the attribute: ``owned``, ``known``, or ``inside`` for a part of an object, with
            its number and the way to it.
        name: the attribute; ``""`` where it cannot be told.
        how: ``""`` where it is set; the method of a list or dict that adds to it, ``extend`` or ``update``.
        value: template of what it is set to, or what is added; its leaves are numbered as the ``keep`` marks are.
            ``None`` where it cannot be told.
    """

    owner: Template
    name: str
    how: str
    value: Template | None


@dataclass(frozen=True)
class Act:
    """What a call's own code does that no graph holds.

    Attributes:
        what: in words, behind the name of who does it.
        where: the code, as ``file:line``.
        kind: what would be lost: ``gradient``; ``numbers`` of a generator that is not torch's; ``seed``, what is done
            to torch's own.
    """

    what: str
    where: str
    kind: str

    def __str__(self) -> str:
        return f"{self.what} at {self.where}"


@dataclass(frozen=True)
class Mode:
    """A call's own code puts a module into training or evaluation mode.

    Attributes:
        ways: the attributes that lead to the module from the root: one for each that has it.
        method: ``train`` or ``eval``, which reach what is below it; ``""`` where ``training`` itself is set.
        value: template of the method's ``(args, kwargs)``, or of what the flag is set to.
        number: in the order of the trace.
        before: the number of the next call: it begins in that mode.
    """

    ways: tuple[tuple[str, ...], ...]
    method: str
    value: Template
    number: int
    before: int

    def reaches(self, owner: Any) -> bool:
        """Whether it sets the mode of a module: an ``Owned``."""
        return any(way == (own[: len(way)] if self.method else own) for way in self.ways for own in owner.ways)


@dataclass(eq=False)
class CallRecord:
    """One call of a module, or of a function that is kept whole.

    Attributes:
        number: in the order in which calls began; 0 is the whole capture.
        target: the module's qualified name, or the function.
        outer: the call it was made from.
        given, result: templates of ``(args, kwargs)`` and of the result; leaves are numbered as the marks are,
            ``("known", i)`` is the recorder's object ``i``.
        done: whether the call returned.
        reads: attributes that its own code read, by what has each (an ``Owned``) and the name.
        looked_into: numbers of objects whose attributes its own code read.
        writes: what its own code does beside its result.
        acts: what its own code does that no graph holds.
        modes: where its own code changes the mode of modules, in order.
        asks_grad: whether it asked if gradients are recorded.
        alters: whether it, a method of an object, left other values in the object's attributes.
        replaced: what objects that were met before no longer held at its end, ``(object, leaf)``.
    """

    number: int
    target: str | Callable[..., Any]
    outer: CallRecord | None
    given: Template = ("const", type(None), None)
    result: Template = ("const", type(None), None)
    done: bool = False
    reads: dict[tuple[Any, str], Any] = field(default_factory=dict)
    looked_into: set[int] = field(default_factory=set)
    writes: list[Write] = field(default_factory=list)
    acts: set[Act] = field(default_factory=set)
    modes: list[Mode] = field(default_factory=list)
    asks_grad: bool = False
    alters: bool = False
    replaced: set[tuple[int, int]] = field(default_factory=set)

    @property
    def name(self) -> str:
        """For messages."""
        return self.target if isinstance(self.target, str) else getattr(self.target, "__name__", repr(self.target))

    def sets_mode_of(self, owner: Any, before: int) -> bool:
        """Whether its own code sets the mode of a module before a call, by number, begins."""
        return any(mode.before <= before and mode.reaches(owner) for mode in self.modes)

    def path_from(self, other: CallRecord | None) -> list[CallRecord]:
        """The calls from below ``other`` down to this one; all of them where it is not around this one."""
        chain: list[CallRecord] = []
        call: CallRecord | None = self
        while call is not None and call is not other:
            chain.append(call)
            call = call.outer
        return chain[::-1]

    def is_after(self, other: CallRecord) -> bool:
        """Whether ``other`` was over when it began."""
        return other.number < self.number and not self.is_in(other)

    def is_in(self, other: CallRecord) -> bool:
        """Whether it is ``other``, or made from within."""
        call: CallRecord | None = self
        while call is not None and call is not other:
            call = call.outer
        return call is other


@dataclass(eq=False, frozen=True)
class Inside:
    """A part of an object that passes through calls: a layer of a cache.

    Attributes:
        number: of the object.
        way: to the part, as code behind the object.
    """

    number: int
    way: str


@dataclass(eq=False)
class Passed:
    """A stateful object that passes through calls: a cache.

    Attributes:
        number: what ``("known", number)`` in the templates of calls refers to.
        maker: the call whose own code made it, as far as calls tell.
        first: its template when it was first met; leaves are numbered as in ``leaves``.
        leaves: nodes of the tensors that it held then.
        given: whether it came with the arguments of the whole capture.
        inside: an object met before that holds it, by number, and the attributes that lead to it from there.
        held_by: the same for objects met later.
        unseen: whether it cannot be told what is read of it.
    """

    number: int
    cls: type
    maker: CallRecord
    given: bool
    first: Template = ("const", type(None), None)
    leaves: list[fx.Node] = field(default_factory=list)
    inside: tuple[int, tuple[str, ...]] | None = None
    held_by: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    unseen: bool = False
