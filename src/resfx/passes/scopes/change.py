"""What one method did at one residual add of one graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import fx


@dataclass(frozen=True, eq=False)
class Change:
    """One thing done.

    Attributes:
        site: name of the add.
        method: label of the method.
        what: ``replaced`` (the add), ``read`` (over depth, or of a wide state, where the branch starts) or ``mixer``
            (before the branch or inside it: over positions, or a projection that reads those of other layers).
        result: the node that carries the stream behind the add now, where the add was replaced and is still read.
    """

    site: str
    method: str
    what: Literal["replaced", "read", "mixer"]
    result: fx.Node | None = None
