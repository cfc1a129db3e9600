"""DenseFormer (arXiv 2402.02622): a depth-weighted average of block states after every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import empty, set_values
from resfx.methods.observe import Observations, Observed
from resfx.ops.weighted_sum.formula import weighted_sum

from .base import DepthMethod, DepthPlace, Read


@dataclass(frozen=True, kw_only=True)
class DenseFormer(DepthMethod):
    """After block ``i``: ``Y_i = sum_j a_ij X_j`` over ``j <= i`` with ``j = i (mod dilation)`` (section 3.1).

    ``X_0`` is the embedding and ``X_j`` the output of block ``j`` *before* its average; the weights are signed
    scalars without normalisation. The published start (``a_ii = 1``, others 0) computes what the host does;
    ``start="preserve"`` learns the difference from it, ``X_i + sum_j o_ij X_j`` with ``o = 0``, so that weight decay
    pulls towards the host and not towards zero, and half types keep their resolution.

    ``(i + dilation) // dilation`` scalars after block ``i``: ``L (L + 3) / 2`` in all for the dense form.

    Attributes:
        dilation: distance between sources, ``k``.
        period: average after every ``period``-th block only, ``p``.
    """

    name: ClassVar[str] = "denseformer"
    parameters: ClassVar[str] = "i + 1 at block i"
    crosses: ClassVar[str] = "the state and that before each block"
    saved: ClassVar[str] = "d"

    dilation: int = 1
    period: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(dilation=self.dilation, period=self.period)

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        if read == 0 or read % self.period:
            return None
        return [(j,) for j in range(read % self.dilation, read + 1, self.dilation)]

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        return DepthAverage(self, place)


class DepthAverage(Read):
    """One average: as many scalars as sources."""

    def __init__(self, config: DenseFormer, place: DepthPlace) -> None:
        super().__init__(config)
        self.weight = empty(place.sources, **factory_of(place))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        start = torch.zeros(self.weight.shape)
        start[-1] = 0.0 if self.preserve else 1.0
        set_values(self.weight, start)

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        return weighted_sum(sources, self.weight, x if self.preserve else None)

    def observe(self, sources: list[Tensor], x: Tensor) -> Observations:
        """``weights``, ``a_ij``: with ``start="preserve"`` the learned difference and the one that it differs from."""
        weights = self.weight.clone()
        weights[-1] += self.preserve
        return {"weights": Observed(weights, ("source",))}
