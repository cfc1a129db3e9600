"""Where a residual add stands in its model's source: what it is known by in every capture of the model.

A number is not enough: another call may run one more add of the same ``forward``, or one less. An add is known by the
module that owns it, the lines that lead to it from that module's ``forward``, and what its branch calls. Adds that
agree in all of these (a loop over one module) are told apart by their order, as long as there are equally many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from .site import Site


@dataclass(frozen=True)
class Standing:
    """The place of one add.

    Attributes:
        owner, order: the module that adds, and which of its adds it was when it was first seen: its name.
        lines: ``file.py:line`` of the owner's ``forward`` and of what that calls down to the add; empty if unknown.
        calls: what its branch calls, or reads of the owner's own parameters.
        same: ``(which, of how many)`` of the adds with this owner, these lines and these calls.
        on_lines: how many adds the owner has at these lines, whatever they call.
        alike: ``(which, of how many)`` of the adds with this owner and these calls, wherever they stand.
    """

    owner: str
    order: int
    lines: tuple[str, ...]
    calls: tuple[str, ...]
    same: tuple[int, int]
    on_lines: int
    alike: tuple[int, int]

    @property
    def name(self) -> str:
        """As :attr:`Site.name` was when the add was first seen."""
        return f"{self.owner or '(root)'}:{self.order}"

    def is_within(self, module: str) -> bool:
        """Whether its owner is a module or lies in it."""
        return self.owner == module or self.owner.startswith(f"{module}.")

    def known_as(self, other: Standing) -> Standing:
        """This place under the name of another."""
        return dataclasses.replace(self, owner=other.owner, order=other.order)

    def seen_from(self, module: str) -> Standing:
        """The same place in a capture of a submodule that it :meth:`is_within`."""
        return dataclasses.replace(self, owner=self.owner[len(module) :].lstrip("."))


def standings_of(sites: Sequence[Site]) -> list[Standing]:
    """The place of every site of one capture."""
    same = _numbered(sites, lambda s: (s.owner, s.lines, s.calls))
    lines = _numbered(sites, lambda s: (s.owner, s.lines))
    alike = _numbered(sites, lambda s: (s.owner, s.calls))
    return [
        Standing(site.owner, site.order, site.lines, site.calls, same[i], lines[i][1], alike[i])
        for i, site in enumerate(sites)
    ]


def _numbered(sites: Sequence[Site], key: Callable[[Site], Hashable]) -> list[tuple[int, int]]:
    """For every site ``(which, of how many)`` of those with its key."""
    members: dict[Hashable, int] = {}
    which = []
    for site in sites:
        which.append(members.get(key(site), 0))
        members[key(site)] = which[-1] + 1
    return [(i, members[key(site)]) for i, site in zip(which, sites, strict=True)]


class Sought:
    """The adds of one capture, asked for by where they stood in another."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.owners = {s.owner for s in sites}
        self._on_lines: dict[Hashable, list[Site]] = {}
        self._alike: dict[Hashable, list[Site]] = {}
        for site in sites:
            self._on_lines.setdefault((site.owner, site.lines), []).append(site)
            self._alike.setdefault((site.owner, site.calls), []).append(site)

    def find(self, place: Standing) -> Site | None:
        """The add at a place, from the same source; ``None`` where it is not there, or which one it is is not sure."""
        if (same := self._by_lines(place)) is not None:
            return same
        here = self._on_lines.get((place.owner, place.lines), [])
        return here[0] if len(here) == place.on_lines == 1 else None  # the one add there, with another branch

    def find_moved(self, places: Iterable[Standing]) -> dict[Standing, Site | None]:
        """The adds at several places, from a source whose lines may have moved since.

        Where every add is still at its lines, those are the adds. Else each is the one that calls the same, by its
        number among as many as there were. ``None`` where neither is sure, or the two disagree.
        """
        places = list(places)
        exact = {place: self._by_lines(place) for place in places}
        numbered = {place: self._by_number(place) for place in places}
        if None in exact.values():
            return numbered
        return {p: s if numbered[p] in (s, None) else None for p, s in exact.items()}

    def _by_lines(self, place: Standing) -> Site | None:
        same = [s for s in self._on_lines.get((place.owner, place.lines), []) if s.calls == place.calls]
        return same[place.same[0]] if len(same) == place.same[1] else None

    def _by_number(self, place: Standing) -> Site | None:
        alike = self._alike.get((place.owner, place.calls), [])
        return alike[place.alike[0]] if len(alike) == place.alike[1] else None
