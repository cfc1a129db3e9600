"""What each method carries over depth, by formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import resfx


@dataclass(frozen=True)
class Carried:
    """A method and the vectors of the stream's width that the blocks behind a place read of those before it.

    Attributes:
        method: for :func:`resfx.rewrite`; None leaves the model as it is.
        formula: of their number behind ``l`` blocks of two sublayers.
        made: how many of them are made by the first ``l`` blocks and stay as they are.
        fresh: how many are others behind every block: the stream, its channels, a sum that goes on.
        window: how many of the last made are read at all.
    """

    method: Any
    formula: str
    made: Callable[[int], int] = lambda b: 0
    fresh: Callable[[int], int] = lambda b: 1
    window: float = float("inf")

    def behind(self, blocks: int, seen: int | None = None) -> int:
        """Vectors that cross behind so many blocks, to a process that has those of the first ``seen`` already."""
        lacks = self.made(blocks) - (0 if seen is None else self.made(seen))
        return int(self.fresh(blocks) + min(lacks, self.window))

    def crossing(self, blocks: int, stages: int, ranks: int | None = None) -> list[int]:
        """Vectors at each border of equal stages; with ``ranks``, where processes keep what they have."""
        per = blocks // stages
        last = lambda i: None if ranks is None or i < ranks else (i - ranks + 1) * per
        return [self.behind(i * per, last(i)) for i in range(1, stages)]


def _channels(method: Any) -> Carried:
    return Carried(method, "n", fresh=lambda b: 4)


METHODS: dict[str, Carried] = {
    "(plain)": Carried(None, "1"),
    "ddl": Carried(resfx.DDL(), "1"),
    "ddl, 4 value channels": _channels(resfx.DDL(value_channels=4)),
    "hyper_connections": _channels(resfx.HyperConnections()),
    "mhc": _channels(resfx.MHC()),
    "short_swa": Carried(resfx.ShortSWA(), "1"),
    "canon": Carried(resfx.Canon(), "1"),
    "attnres": Carried(resfx.AttnRes(), "2l + 2", lambda b: 2 * b + 1),
    "attnres, blocks of 8": Carried(resfx.AttnRes(block=8), "3 + ceil(2l / 8)", lambda b: -(-2 * b // 8), lambda b: 3),
    "delta_attnres": Carried(resfx.DeltaAttnRes(), "2l + 2", lambda b: 2 * b + 1),
    "denseformer": Carried(resfx.DenseFormer(), "l + 1", lambda b: b + 1, lambda b: 0),
    "elc": Carried(resfx.ELC(), "l + 2", lambda b: b + 1),
    "mudd": Carried(resfx.MUDD(), "l + 1", lambda b: b + 1, lambda b: 0),
    "vertical": Carried(resfx.VerticalAttention(), "l + 1", lambda b: b + 1, lambda b: 0),
    "depth_read": Carried(resfx.DepthRead(), "min(l + 1, K)", lambda b: b + 1, lambda b: 0, 4),
}  # fmt: skip
