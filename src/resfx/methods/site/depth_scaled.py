"""The depth-scaled add: a running average of the stream whose variance stays that of one branch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import Learned, empty
from resfx.methods.observe import Observations, Observed
from resfx.ops.register import accumulator

from .sums import host_sum, weighted


@dataclass(frozen=True, kw_only=True)
class DepthScaled(Method):
    """``sqrt((k - 1) / k) x + sqrt(1 / k) f`` at the add that makes the stream a sum of ``k`` terms.

    The embedding is the first term, so ``k = 2`` at the first add. Of independent terms of unit variance every state
    then has unit variance; unrolled, all ``k`` terms weigh ``1 / sqrt(k)``, where a plain sum grows as ``sqrt(k)``.

    ``start="published"`` has no parameters. ``"preserve"`` goes from the host's sum to it by one number per site,
    ``(x + f) + s (depth-scaled - (x + f))`` with ``s = 0``.
    """

    name: ClassVar[str] = "depth_scaled"
    parameters: ClassVar[str] = "1"
    saved: ClassVar[str] = "d"

    def build(self, place: Place) -> nn.Module:
        return AveragedAdd(self, place)


class AveragedAdd(Learned):
    """One add, ``place.depth`` adds behind the start of its stream."""

    def __init__(self, config: DepthScaled, place: Place) -> None:
        super().__init__()
        self.terms = place.depth + 2
        self.share = empty(1, **factory_of(place)) if config.start == "preserve" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.share is not None:
            nn.init.zeros_(self.share)

    def forward(self, x: Tensor, f: Tensor, c: Tensor | None, total: Tensor | None = None) -> Tensor:
        k = self.terms
        keep, take = math.sqrt((k - 1) / k), math.sqrt(1 / k)
        if self.share is None:
            one = torch.ones(1, dtype=accumulator(x.dtype), device=x.device)
            return weighted([(one * keep, x), (one * take, f)], None, x.dtype)
        base = host_sum(x, f, total)
        return weighted([(self.share * (keep - 1), x), (self.share * (take - 1), f)], base, base.dtype)

    def observe(self, x: Tensor, f: Tensor, c: Tensor | None, total: Tensor | None = None) -> Observations:
        """``share``: how far from the host's sum, 0, to the running average, 1."""
        return {"share": Observed(x.new_ones(()) if self.share is None else self.share[0])}

    def extra_repr(self) -> str:
        return f"terms={self.terms}"
