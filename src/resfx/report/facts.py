"""What a report tells, as plain data: text and picture are made from it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from resfx.methods.options import refuse_wrong_arguments
from resfx.passes.find.site import Site, Skip, Stream
from resfx.passes.scopes.change import Change

Done = Literal["mixer", "route", "read", "replaced"]
_DONE: tuple[Done, ...] = get_args(Done)


@dataclass(eq=False, repr=False)
class Facts:
    """Sites, skips and streams of one model.

    Attributes:
        model: class name of the model.
        sites: every residual add found, whatever its form.
        skips: adds that are not residual, and sites that a method left alone; each with its reason.
        streams: the streams that the sites form.
        nodes: number of nodes of the captured graph.
        changes: what methods did at the sites.
        new_parameters: names and sizes of parameters that a rewrite added.
    """

    model: str
    sites: list[Site]
    skips: list[Skip]
    streams: list[Stream]
    nodes: int = 0
    changes: list[Change] = field(default_factory=list)
    new_parameters: dict[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> list[Site]:
        """The sites that were rewritten, or whose branch was."""
        names = {c.site for c in self.changes}
        return [s for s in self.sites if s.name in names]

    def methods_at(self, site: Site, *what: Done) -> list[str]:
        """The methods that act at a site: mixers and routes of its branch, reads at its input, what replaced the add.

        Args:
            what: only those of one kind, ``"mixer"``, ``"route"``, ``"read"`` or ``"replaced"``.

        Raises:
            OptionError: for another kind, or what is no site.
        """
        refuse_wrong_arguments(Facts.methods_at, site=site)
        for kind in what:
            refuse_wrong_arguments(Facts.methods_at, what=kind)
        done = self._done.get(site.name, ())
        return list(dict.fromkeys(c.method for kind in what or _DONE for c in done if c.what == kind))

    @functools.cached_property
    def _done(self) -> dict[str, list[Change]]:
        done: dict[str, list[Change]] = {}
        for change in self.changes:
            done.setdefault(change.site, []).append(change)
        return done

    def to_dict(self) -> dict[str, Any]:
        """Plain data: JSON-ready, without graph nodes."""
        return {
            "model": self.model, "nodes": self.nodes, "sites": [self._site(s) for s in self.sites],
            "skips": [s.to_dict() for s in self.skips], "streams": [s.to_dict() for s in self.streams],
            "new_parameters": dict(self.new_parameters),
        }  # fmt: skip

    def _site(self, site: Site) -> dict[str, Any]:
        acting = {kind: self.methods_at(site, kind) for kind in _DONE}
        return {**site.to_dict(), "method": "".join(acting["replaced"][-1:]), "mixers": acting["mixer"],
                "routes": acting["route"], "reads": "".join(acting["read"][-1:])}  # fmt: skip
