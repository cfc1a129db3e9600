"""One ``rewrite`` call: a method, where it may act, the adds it claimed and the modules it built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from resfx.methods.base import Method
from resfx.passes.find.site import Skip
from resfx.passes.find.standing import Standing

from .bank import Placed, path_of

DEFAULT_FORMS = ("identity", "scaled", "parallel", "projection")


@dataclass
class Application:
    """A method and where it acts. What it did to one graph is a list of :class:`.change.Change`.

    Attributes:
        method: the config.
        include, exclude: globs over owner names.
        forms: forms of residual adds that may be claimed; ``"outer"`` adds long skips around whole blocks.
        key: name of the bank of new modules in the model's tree, ``resfx.<key>``.
        claimed: the adds it rewrote, fixed by the first capture, or by the recipe it was loaded from.
        placed: the modules it built, by the name of their add and their role; empty before the first capture.
        seen: all adds of its first capture.
        skips: what it left alone, and why.
    """

    method: Method
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    forms: tuple[str, ...] = DEFAULT_FORMS
    key: str = ""
    claimed: tuple[Standing, ...] | None = None
    placed: dict[tuple[str, str], Placed] = field(default_factory=dict)
    seen: tuple[Standing, ...] = ()
    skips: list[Skip] = field(default_factory=list)

    @property
    def is_built(self) -> bool:
        """Whether a capture was rewritten by it before: its modules are there, and no site is chosen anew."""
        return bool(self.placed)

    def copy(self) -> Application:
        """As it is now, for another model: what one builds the other does not know of."""
        return dataclasses.replace(self, placed=dict(self.placed), skips=[] if not self.is_built else list(self.skips))

    def within(self, module: str) -> Application | None:
        """What of it lies in a submodule, named as seen from there; ``None`` if nothing does."""
        inside = {c.name: c.seen_from(module) for c in self.claimed or () if c.is_within(module)}
        placed = {}
        for (site, role), entry in self.placed.items():
            if site in inside:
                seen = inside[site]
                path = path_of(self.method.scope, self.key, seen.owner, seen.order, role)
                placed[seen.name, role] = dataclasses.replace(entry, site=seen.name, path=path)
        if not inside:
            return None
        within = tuple(place.seen_from(module) for place in self.seen if place.is_within(module))
        return dataclasses.replace(self, claimed=tuple(inside.values()), placed=placed, seen=within, skips=[])
