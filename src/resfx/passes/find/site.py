"""What was found and what was changed: sites, skips, streams; as objects, text or a dictionary."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from torch import fx


@dataclass(eq=False, repr=False)
class Site:
    """One residual add.

    Attributes:
        owner: qualified name of the module whose ``forward`` adds; ``""`` for the root.
        order: which add of its owner it is; ``(owner, order)`` names a site in every capture of a model.
        kind: ``attention``, ``mlp``, ``conv`` or ``other``, from the operators of the branch.
        form: ``identity``, ``scaled``, ``parallel``, ``projection`` or ``resampled``.
        line: ``file:line`` in the user's source.
        lane: which of two coupled streams that began at one tensor (reversible blocks).
        stream: number of the stream it belongs to.
        block: qualified name of the repeated block it belongs to.
        inside: the site whose branch contains this one.
        axis: the feature axis, ``-1`` or counted from the front.
        width: size of that axis.
        method: name of the method that rewrote it, ``""`` before.
        reads: name of the method that reads over depth where its branch starts.
        result: the node that carries the stream behind the add, once a rewrite has replaced it.
        is_outer: a long skip around whole blocks: its branch holds sites of its own stream, or a stream of several.
            A lone add within a branch (a short convolution, an adapter) does not make one.
        mixers: names of the methods that put a mixer before the branch or into it.
    """

    node: fx.Node
    shortcut: fx.Node
    branch: fx.Node
    fork: fx.Node
    form: str
    owner: str
    line: str
    inner: list[Site] = field(default_factory=list)
    order: int = 0
    kind: str = "other"
    context: fx.Node | None = None
    attention: fx.Node | None = None
    shortcut_index: int = 0
    axis: int = -1
    width: int | None = None
    alpha: float = 1
    root: fx.Node | None = None
    depth: int = 0
    lane: int = 0
    stream: int = 0
    block: str = ""
    inside: Site | None = None
    method: str = ""
    reads: str = ""
    result: fx.Node | None = None
    is_outer: bool = False
    mixers: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        method = f", {self.method}" if self.method else ""
        return f"Site({self.name}, {self.kind}, {self.form}{method}, stream {self.stream})"

    @property
    def name(self) -> str:
        """``owner`` and, where an owner adds more than once, the number of the add."""
        return f"{self.owner or '(root)'}:{self.order}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without graph nodes."""
        return {
            "name": self.name, "owner": self.owner, "order": self.order, "kind": self.kind, "form": self.form,
            "line": self.line, "stream": self.stream, "block": self.block, "axis": self.axis, "width": self.width,
            "inside": self.inside.name if self.inside else None, "outer": self.is_outer, "method": self.method,
            "context": self.context is not None, "mixers": list(self.mixers),
            "reads": self.reads,
        }  # fmt: skip


@dataclass(eq=False)
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


@dataclass(eq=False)
class Stream:
    """The depth-ordered sites that carry one residual stream.

    Attributes:
        entry: the node that enters the stream.
        exit: the last add.
        blocks: names of the repeated blocks, in order.
    """

    number: int
    sites: list[Site]
    entry: fx.Node
    exit: fx.Node
    blocks: list[str]
    width: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without graph nodes."""
        return {"number": self.number, "width": self.width, "sites": [s.name for s in self.sites],
                "blocks": self.blocks}  # fmt: skip


@dataclass(eq=False, repr=False)
class Report:
    """The result of :func:`resfx.scan` and of every rewrite.

    Attributes:
        model: class name of the model.
        sites: every residual add found, whatever its form.
        skips: adds that are not residual, and sites that a method left alone; each with its reason.
        streams: the streams that the sites form.
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

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of the streams to an ``.svg`` file."""
        from resfx.report.picture import draw

        draw(self, path)

    def __str__(self) -> str:
        from resfx.report.text import report_text

        return report_text(self)

    def __repr__(self) -> str:  # what a notebook shows
        return str(self)
