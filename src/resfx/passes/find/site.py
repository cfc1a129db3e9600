"""What was found: sites, skips and streams. Facts about one graph; what a method does to a site is kept elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from .terms import Term

FORMS = ("identity", "scaled", "parallel", "projection", "resampled")


@dataclass(frozen=True, eq=False, repr=False)
class Site:
    """One residual add.

    Attributes:
        node: the add itself.
        shortcut, branch: what its two terms take.
        terms: the shortcut's and the branch's: where they stand, and with which factors they are added.
        joins: operators that join the terms for the add, as ``stack`` does for a sum; the last one first.
        fork: the state that both were computed from.
        owner: qualified name of the module whose ``forward`` adds; ``""`` for the root.
        order: which add of its owner it is; ``(owner, order)`` names a site within a capture.
        kind: ``attention``, ``mlp``, ``conv`` or ``other``, from the operators of the branch.
        form: ``identity``, ``scaled``, ``parallel``, ``projection`` or ``resampled``.
        line: ``file:line`` in the user's source.
        lines: ``file:line`` without folders for each step from the owner's ``forward`` to the add.
        calls: what of the owner its branch calls; with ``lines``, what it is known by in another capture.
        context: what the norm that opens the branch hands on.
        axis: the feature axis, ``-1`` or counted from the front.
        width: size of that axis.
        root: where its stream begins.
        depth: number of adds before it in its stream.
        lane: which of two coupled streams that began at one tensor (reversible blocks).
        stream: number of the stream it belongs to.
        block: qualified name of the repeated block it belongs to.
        inside: the site whose branch contains this one.
        is_outer: a long skip around whole blocks: its branch holds sites of its own stream, or a stream of several.
            A lone add within a branch (a short convolution, an adapter) does not make one.
    """

    node: fx.Node
    shortcut: fx.Node
    branch: fx.Node
    fork: fx.Node
    form: str
    owner: str
    line: str
    terms: tuple[Term, ...] = ()
    joins: tuple[fx.Node, ...] = ()
    lines: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    order: int = 0
    kind: str = "other"
    context: fx.Node | None = None
    axis: int = -1
    width: int | None = None
    root: fx.Node | None = None
    depth: int = 0
    lane: int = 0
    stream: int = 0
    block: str = ""
    inside: Site | None = None
    is_outer: bool = False

    def __repr__(self) -> str:
        return f"Site({self.name}, {self.kind}, {self.form}, stream {self.stream})"

    @property
    def name(self) -> str:
        """``owner`` and, where an owner adds more than once, the number of the add."""
        return f"{self.owner or '(root)'}:{self.order}"

    @property
    def is_plain(self) -> bool:
        """Whether the add is ``shortcut + branch``, without a factor and with a tensor for each."""
        return all(term.is_plain for term in self.terms)

    @property
    def ends(self) -> list[fx.Node]:
        """What the branch ends in: its output, or both factors where the add multiplies them itself."""
        factors = [part.read() for term in self.terms[1:] if term.product is not None for part in term.parts]
        return [self.branch, *(f for f in factors if f is not None and f is not self.branch)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without graph nodes."""
        return {
            "name": self.name, "owner": self.owner, "order": self.order, "kind": self.kind, "form": self.form,
            "line": self.line, "stream": self.stream, "block": self.block, "axis": self.axis, "width": self.width,
            "inside": self.inside.name if self.inside else None, "outer": self.is_outer,
            "context": self.context is not None,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Skip:
    """A candidate that was not rewritten: why, where, and what to do."""

    owner: str
    line: str
    reason: str
    remedy: str = ""
    node: fx.Node | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without graph nodes."""
        return {"owner": self.owner, "line": self.line, "reason": self.reason, "remedy": self.remedy}


@dataclass(frozen=True, eq=False)
class Stream:
    """The depth-ordered sites that carry one residual stream.

    Attributes:
        blocks: names of the repeated blocks, in order.
    """

    number: int
    sites: tuple[Site, ...]
    blocks: tuple[str, ...]
    width: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without graph nodes."""
        return {"number": self.number, "width": self.width, "sites": [s.name for s in self.sites],
                "blocks": list(self.blocks)}  # fmt: skip
