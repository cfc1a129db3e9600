"""What this library notes on a node of a graph, in one record under one key of ``node.meta``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import fx

from resfx.passes.holdings import Place

KEY = "resfx"


@dataclass(frozen=True)
class Mark:
    """Notes on one node.

    Attributes:
        lifted: an input that stands for a constant of the captured program, not for an argument of the call.
        held: of a constant, the places in lists, dicts and objects of the model's where it was when it was captured.
        argument: the call's argument that an input is.
        method: label of the method that made the node, ``""`` for the host's own.
        scope: that method's scope.
        role: what a call of a new module is to its method: ``add``, ``read``, ``write``, ``expand``, ...
        inside: the node belongs to the block of its site, though its scope puts others between blocks.
        carries: it hands each channel of a wide state through what the host does to its one state: the code of a module
            in which nothing else is new is right as it is where the state is one.
        longer_keys: the attention beside it reads more positions than the call has: there is a cache.
        now: what stands for the node, which was replaced.
    """

    lifted: bool = False
    held: tuple[Place, ...] = ()
    argument: str = ""
    method: str = ""
    scope: str = ""
    role: str = ""
    inside: bool = False
    carries: bool = False
    longer_keys: bool = False
    now: fx.Node | None = None


_NONE = Mark()


def mark_of(node: fx.Node) -> Mark:
    """The notes on a node; all empty where there are none."""
    return node.meta.get(KEY, _NONE)


def note(node: fx.Node, **changes: Any) -> None:
    """Change some of the notes on a node."""
    node.meta[KEY] = dataclasses.replace(mark_of(node), **changes)


def now(node: fx.Node) -> fx.Node:
    """What stands for a node, which may have been replaced."""
    while (there := mark_of(node).now) is not None:
        node = there
    return node
