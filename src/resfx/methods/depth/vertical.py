"""Vertical Attention (Kojima et al., OpenReview A6uabXKiXc), as far as its abstract and reviews describe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import empty
from resfx.methods.observe import Observations, Observed, attention_map
from resfx.methods.options import wrong
from resfx.ops.scores import rms_scales, rms_scores
from resfx.ops.weighted_sum.formula import weighted_sum

from .base import DepthMethod, DepthPlace, Read


@dataclass(frozen=True, kw_only=True)
class VerticalAttention(DepthMethod):
    """A **reconstruction**: ``h = x + sum_j softmax(a)_j X_j / rms(X_j)`` at the start of every block.

    Neither the paper's text nor code could be read; do not report results of this as the authors'. What is said:
    small parameterised attention modules at the start of each layer that learn connections between layers
    (abstract); softmax-normalised scalar weights that do not depend on the input, over hidden states normalised by
    their norm (reviews). Another paper counts it among content-dependent routing (arXiv 2603.16039).

    Chosen here: sources are the states before every block (cumulative), the ordinary residual stays, the read goes to
    the whole block, weights start uniform. ``start="preserve"`` has a gate ``g = 0`` in front of the sum;
    ``"published"`` has none. The first block has one source and no read.

    Attributes:
        routing: ``"static"`` (reviews): ``n`` scalars; ``"content"``: logits ``w . X_j / rms(X_j)``, ``d`` parameters.
        eps: of the norm.
    """

    name: ClassVar[str] = "vertical"
    parameters: ClassVar[str] = "n + 1 for n sources"
    crosses: ClassVar[str] = "the state before each block"
    saved: ClassVar[str] = "2 d + 3 n"

    routing: Literal["static", "content"] = "static"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(eps=self.eps)
        if self.routing not in ("static", "content"):
            raise wrong(self, "routing", "routing must be 'static' or 'content'")

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        return [(j,) for j in range(read + 1)] if read and not last else None

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        return VerticalRead(self, place)


class VerticalRead(Read):
    """One read: logits (or a query) and, for an exact start, a gate."""

    def __init__(self, config: VerticalAttention, place: DepthPlace) -> None:
        super().__init__(config)
        self.eps, self.content = config.eps, config.routing == "content"
        self.logits = empty(place.width if self.content else place.sources, **factory_of(place))
        self.gate = empty(1, **factory_of(place)) if self.preserve else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.logits)
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        total = weighted_sum(sources, self._weights(sources) * rms_scales(sources, self.eps))
        return x + (total if self.gate is None else self.gate * total).to(x.dtype)

    def observe(self, sources: list[Tensor], x: Tensor) -> Observations:
        """``weights``, ``softmax(a)``, their entropy, and ``gate``."""
        found = attention_map(self._weights(sources))
        if self.gate is not None:
            found["gate"] = Observed(self.gate.squeeze(-1))
        return found

    def _weights(self, sources: list[Tensor]) -> Tensor:
        if self.content:
            logits = rms_scores(sources, self.logits, self.eps)
        else:
            logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        return logits.softmax(-1)
