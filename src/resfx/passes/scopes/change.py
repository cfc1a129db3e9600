"""What one method did at one residual add of one graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import fx

Did = Literal["replaced", "read", "mixer", "route"]


@dataclass(frozen=True, eq=False)
class Change:
    """One thing done.

    Attributes:
        site: name of the add.
        method: label of the method.
        what: ``replaced`` (the add), ``read`` (over depth, or of a wide state, where the branch starts), ``mixer``
            (before the branch or inside it, over positions) or ``route`` (a projection in it reads other layers').
        result: the node that carries the stream behind the add now, where the add was replaced and is still read.
    """

    site: str
    method: str
    what: Did
    result: fx.Node | None = None
