"""Residual lambdas (modded-nanogpt, nanochat): two numbers a block mix the state with the embedding; U-net skips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import empty, set_values
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import wrong
from resfx.ops.weighted_sum.formula import weighted_sum

from .base import DepthMethod, DepthPlace, Read


@dataclass(frozen=True, kw_only=True)
class Lambdas(DepthMethod):
    """``X_i <- l_i X_i + m_i X_0 + sum_a s_a X_a`` before every block; ``X_end <- X_end - o X_mid`` behind the last.

    ``X_0`` is the embedding, ``X_j`` the output of block ``j`` before its own mix. With ``start="published"`` the
    numbers start at ``l = 1``, ``m = 0.1``, ``s = 1`` and ``o = 0.2`` (nanochat, and modded-nanogpt for ``s``);
    ``"preserve"`` learns the difference from the host, ``l - 1``, ``m``, ``s`` and ``o``, all zero.

    Attributes:
        x0: mix in the embedding, ``m`` (nanochat's ``x0_lambdas``).
        skips: pairs ``(a, b)``: ``X_b`` takes in ``s X_a``; modded-nanogpt pairs the blocks of a U, such as
            ``((2, 10), (4, 9))`` of twelve.
        backout: take off ``o X_mid`` at the end, ``mid = L // 2 + 1`` of ``L`` blocks.
    """

    name: ClassVar[str] = "lambdas"
    parameters: ClassVar[str] = "2 a block"
    crosses: ClassVar[str] = "the state and the embedding"
    saved: ClassVar[str] = "d"

    x0: bool = True
    skips: tuple[tuple[int, int], ...] = ()
    backout: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.skips, (list, tuple)):  # pairs come as lists from a saved recipe
            object.__setattr__(self, "skips", tuple(tuple(p) if isinstance(p, list) else p for p in self.skips))
        super().__post_init__()
        for a, b in self.skips:
            if not 0 <= a < b:
                raise wrong(self, "skips", f"a skip goes from an earlier block to a later one, not from {a} to {b}")
        if len(set(self.skips)) < len(self.skips):
            raise wrong(self, "skips", "each skip once")

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        if last:
            for _, b in self.skips:
                if b >= read:
                    raise wrong(self, "skips", f"a skip into block {b} needs more than the {read} blocks of a stream",
                                f"skips into blocks up to {read - 1}")  # fmt: skip
            return [(min(read // 2 + 1, read - 1),), (read,)] if self.backout else None
        others = [a for a, b in self.skips if b == read and not (self.x0 and a == 0)]
        first = [0] if self.x0 and read else []
        return [(j,) for j in (*first, *others, read)]

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        return Mixed(self, place)


class Mixed(Read):
    """A weight for each source; the state itself comes last."""

    def __init__(self, config: Lambdas, place: DepthPlace) -> None:
        super().__init__(config)
        self.last, self.number = place.last, place.read
        self.x0 = config.x0 and not place.last
        self.weight = empty(place.sources, **factory_of(place))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        start = torch.zeros(self.weight.shape)
        if not self.preserve:
            start[:] = -0.2 if self.last else 1.0
            if self.x0:
                start[0] = 0.1
            start[-1] = 1.0 if self.number or not self.x0 else 1.1  # before the first block both are the embedding
        set_values(self.weight, start)

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        return weighted_sum(sources, self.weight, x if self.preserve else None)

    def observe(self, sources: list[Tensor], x: Tensor) -> Observations:
        """``weights``, those of the learned difference from the host where its start is preserved."""
        return {"weights": Observed(self.weight, ("source",))}
