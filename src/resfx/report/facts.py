"""What a report tells, as plain data: text and picture are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from resfx.passes.find.site import Site, Skip, Stream


@dataclass(eq=False, repr=False)
class Facts:
    """Sites, skips and streams of one model.

    Attributes:
        model: class name of the model.
        sites: every residual add found, whatever its form.
        skips: adds that are not residual, and sites that a method left alone; each with its reason.
        streams: the streams that the sites form.
        nodes: number of nodes of the captured graph.
        new_parameters: names and sizes of parameters that a rewrite added.
    """

    model: str
    sites: list[Site]
    skips: list[Skip]
    streams: list[Stream]
    nodes: int = 0
    new_parameters: dict[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> list[Site]:
        """The sites that were rewritten, or whose branch was."""
        return [s for s in self.sites if s.method or s.mixers or s.reads]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: JSON-ready, without graph nodes."""
        return {
            "model": self.model, "nodes": self.nodes, "sites": [s.to_dict() for s in self.sites],
            "skips": [s.to_dict() for s in self.skips], "streams": [s.to_dict() for s in self.streams],
            "new_parameters": dict(self.new_parameters),
        }  # fmt: skip
