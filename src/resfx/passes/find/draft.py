"""A site while it is being found: what the detector may still change its mind about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from torch import fx

from .site import Site
from .terms import Term


@dataclass(eq=False)
class Draft:
    """A :class:`Site` to be; the fields of the same name are its fields.

    Attributes:
        inner: the last adds of the streams that lie within its branch.
        depth: how many adds lead from the root of its stream to this one; at the end, how many come before it there.
    """

    node: fx.Node
    shortcut: fx.Node
    branch: fx.Node
    terms: tuple[Term, Term]
    joins: tuple[fx.Node, ...]
    fork: fx.Node
    form: str
    owner: str
    line: str
    lines: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    inner: list[Draft] = field(default_factory=list)
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
    inside: Draft | None = None
    is_outer: bool = False


_KEPT = tuple(f.name for f in fields(Site) if f.name in {d.name for d in fields(Draft)} - {"inside"})


def freeze(drafts: Sequence[Draft]) -> list[Site]:
    """The sites of drafts in graph order. An add comes before the one that it lies inside."""
    made: dict[Draft, Site] = {}
    for draft in reversed(drafts):
        inside = made[draft.inside] if draft.inside is not None else None
        made[draft] = Site(**{name: getattr(draft, name) for name in _KEPT}, inside=inside)
    return [made[draft] for draft in drafts]
