"""One captured graph while methods act on it, and one method's turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from resfx.errors import VariantError
from resfx.passes.find.mark import Mark
from resfx.passes.find.site import Site, Skip, Stream
from resfx.passes.find.standing import Standing

from .application import Application
from .bank import Placed, path_of, place_module
from .change import Change, Did


@dataclass(eq=False)
class Surgery:
    """One graph under rewriting, as the next method sees it.

    Attributes:
        tree: the model's modules, the new ones too.
        streams: with the mixers that earlier methods put between adds, and the states that these moved.
        changes: what was done so far.
    """

    graph: fx.Graph
    tree: nn.Module
    streams: list[Stream]
    changes: list[Change] = field(default_factory=list)

    @property
    def replaced(self) -> dict[str, fx.Node | None]:
        """By the name of an add that was replaced, the node that carries the stream behind it now, if one does."""
        return {c.site: c.result for c in self.changes if c.what == "replaced"}

    def method_at(self, site: Site, *what: str) -> str:
        """The last method that did one of these things to an add; ``""`` if none did."""
        return next((c.method for c in reversed(self.changes) if c.site == site.name and c.what in what), "")

    def now(self, sites: Iterable[Site]) -> list[Site]:
        """The sites as they are now: a mixer put before a branch moves what the branch starts from."""
        current = {s.name: s for stream in self.streams for s in stream.sites}
        return [current[s.name] for s in sites]

    def put_before(self, site: Site, mixer: Site, moved: Mapping[str, Site]) -> None:
        """A mixer's add joins the stream before a site; the sites that read its result are the ``moved`` ones."""
        stream = self.streams[site.stream]
        sites: list[Site] = []
        for member in stream.sites:
            sites += [mixer] if member.name == site.name else []
            sites.append(moved.get(member.name, member))
        self.streams[site.stream] = dataclasses.replace(stream, sites=tuple(sites))


@dataclass(eq=False)
class Turn:
    """One application's turn at one graph.

    Attributes:
        chosen: the sites it acts on.
        places: by the names of sites here, the places as which the application knows them.
        first: no graph was rewritten by it before: its modules are yet to be built.
    """

    surgery: Surgery
    application: Application
    chosen: list[Site]
    places: dict[str, Standing]
    first: bool

    @property
    def label(self) -> str:
        """What the method is called."""
        return self.application.method.label

    def module(
        self, site: Site, role: str, make: Callable[[], nn.Module | None], *, late: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """The path of the module that has a role at a site, built on the first capture; ``""`` where there is none.

        Args:
            make: builds it, or says with ``None`` that there is to be none.
            late: it may be built by a later capture: it has no parameters.
            facts: what else it is built for.

        Raises:
            VariantError: if a later capture has other facts.
        """
        known = self.application.placed.get((self._known_as(site), role))
        if known is not None:
            if dict(facts or {}) != known.facts:
                raise VariantError(
                    f"this call needs another capture, and {self.label} cannot act on it as before",
                    f"at {known.site}: its {role} was made for {_listed(known.facts)}, not for {_listed(facts or {})}",
                    "call the model as it was captured, or rewrite it with args= that match this call",
                )
            return known.path
        made = make() if self.first or late else None
        return self._place(site, role, made, facts or {}) if made is not None else ""

    def path(self, site: Site, role: str) -> str:
        """The path of a module that is there already; ``""`` where there is none."""
        known = self.application.placed.get((self._known_as(site), role))
        return known.path if known is not None else ""

    def roles(self, site: Site) -> list[str]:
        """The roles that have modules at a site."""
        return [role for name, role in self.application.placed if name == self._known_as(site)]

    def _place(self, site: Site, role: str, module: nn.Module, facts: Mapping[str, Any]) -> str:
        place, key = self.places.get(site.name), self.application.key
        owner, order = (place.owner, place.order) if place is not None else (site.owner, site.order)
        path = path_of(self.application.method.scope, key, owner, order, role)
        place_module(self.surgery.tree, path, module)
        name = self._known_as(site)
        self.application.placed[name, role] = Placed(key, name, role, path, dict(facts))
        return path

    def _known_as(self, site: Site) -> str:
        place = self.places.get(site.name)
        if place is not None:
            return place.name
        return site.name if site.form == "mixer" else f"{site.name}, new"  # its number may be another's of the first

    def mark(self, role: str = "", **notes: Any) -> Mark:
        """The mark on a node that this turn makes."""
        return Mark(method=self.label, scope=self.application.method.scope, role=role, **notes)

    def change(self, site: Site, *what: Did, result: fx.Node | None = None) -> None:
        """Note what was done at a site."""
        self.surgery.changes += [Change(site.name, self.label, w, result if w == "replaced" else None) for w in what]

    def leave(self, sites: Iterable[Site], reason: str, remedy: str = "") -> None:
        """Note, on the first capture, that sites were left alone."""
        if self.first:
            self.application.skips += [Skip(s.owner, s.line, reason, remedy, node=s.node) for s in sites]


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in facts.items()) or "nothing"


def reasons_of(skips: Sequence[Skip]) -> str:
    """The reasons of skips, each once."""
    return "; ".join(dict.fromkeys(s.reason for s in skips))


def remedies_of(skips: Sequence[Skip]) -> str:
    """What to do about skips, each once."""
    return "; ".join(dict.fromkeys(s.remedy for s in skips if s.remedy))
