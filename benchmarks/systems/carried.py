"""What each method carries over depth, by formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import resfx
from benchmarks.forms import configs

KEYS = 0.5
"""Width of a layer's keys, and of its values, over that of the stream: two heads share one."""
Count = Callable[[int, int], float]
"""Of vectors, by the blocks done and all there are."""


@dataclass(frozen=True)
class Carried:
    """The vectors of the stream's width that the blocks behind a place read of those before it.

    Attributes:
        formula: of their number behind ``l`` of ``L`` blocks of two sublayers.
        made: how many of them are made by the first ``l`` blocks and stay as they are.
        fresh: how many are others behind every block: the stream, its channels, a sum that goes on.
        window: how many of the last made are read at all.
    """

    formula: str
    made: Count = lambda b, L: 0
    fresh: Count = lambda b, L: 1
    window: float = float("inf")

    def behind(self, blocks: int, layers: int, seen: int | None = None) -> float:
        """Vectors that cross behind so many blocks, to a process that has those of the first ``seen`` already."""
        lacks = self.made(blocks, layers) - (0 if seen is None else self.made(seen, layers))
        return self.fresh(blocks, layers) + min(lacks, self.window)

    def crossing(self, layers: int, stages: int, ranks: int | None = None) -> list[float]:
        """Vectors at each border of equal stages; with ``ranks``, where processes keep what they have."""
        per = layers // stages
        last = lambda i: None if ranks is None or i < ranks else (i - ranks + 1) * per
        return [self.behind(i * per, layers, last(i)) for i in range(1, stages)]


def _channels(count: int) -> Carried:
    return Carried("n", fresh=lambda b, L: count)


def _finished(block: int, name: str) -> Carried:
    """Attention Residuals over blocks: the finished ones; the state, the sum that goes on, and the next read."""
    return Carried(f"3 + ceil(2l / {name})", lambda b, L: -(-2 * b // block), lambda b, L: 3)


def _middle(layers: int) -> int:
    return layers // 2 + 1


SUBLAYERS = Carried("2l + 2", lambda b, L: 2 * b + 1)
STATES = Carried("l + 1", lambda b, L: b + 1, lambda b, L: 0)
OUTPUTS = Carried("l + 2", lambda b, L: b + 1)
FIRST_VALUES = Carried("1 + r", lambda b, L: KEYS)
FORMULAS: dict[str, Carried] = {
    **dict.fromkeys(("(plain)", "ddl", "depth_scaled", "laurel", "layer_scale", "rezero", "frac_connections",
                     "short_swa", "short_swa, narrow", "short_conv", "canon", "value_embedding"), Carried("1")),
    **dict.fromkeys(("ddl, 4 channels", "hyper_connections", "mhc", "mhc, identity", "mhc, permutation",
                     "mhc, kronecker", "mhc, orthogonal", "altup, gemma3n"), _channels(4)),
    "altup": _channels(2),
    "attnres": SUBLAYERS,
    "attnres, blocks": _finished(2, "2"),
    "attnres, normalized": _finished(2, "2"),
    "attnres, blocks of 8": _finished(8, "8"),
    "attnres, blocks, two phases": OUTPUTS,
    "delta_attnres": SUBLAYERS,
    "denseformer": STATES,
    "mudd": STATES,
    "vertical": STATES,
    "depth_read": Carried("min(l + 1, K)", lambda b, L: b + 1, lambda b, L: 0, 4),
    "elc": OUTPUTS,
    # The state, what the last block began with (the embedding, for the first), and the next block's three mixtures.
    "dca": Carried("l + 5, once 5", lambda b, L: b, lambda b, L: 4 + (b > 1)),
    "lambdas": Carried("2", lambda b, L: 1),
    "lambdas, skips": Carried("2, behind L / 2 + 1 blocks 3", lambda b, L: 1 + (b >= _middle(L)),
                              lambda b, L: b != _middle(L)),
    "value_residual": FIRST_VALUES,
    "value_residual, shared": FIRST_VALUES,
    "value_residual, dense heads": Carried("1 + l r", lambda b, L: b * KEYS),
    "lime": Carried("1 + 2 l r", lambda b, L: 2 * b * KEYS),
}  # fmt: skip
METHODS: dict[str, Any] = {"(plain)": None, **configs(), "attnres, blocks of 8": resfx.AttnRes(block=8)}
"""For :func:`resfx.rewrite`; None leaves the model as it is."""
