"""ELC-BERT, every layer counts (arXiv 2311.02265): every block reads a learned average of what the blocks wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ._depth import NOT_A_SUM, DepthMethod, DepthPlace, Read, relative_softmax, weighted_sum
from .method import Place


@dataclass(frozen=True, kw_only=True)
class ELC(DepthMethod):
    """Input of block ``n``: ``h_n = sum_j softmax(a_n)_j o_j`` with ``o_0`` the embedding and ``o_j`` what block ``j``
    added (equations from the authors' code; ``h_n`` itself is not carried on by the block).

    The end of the stream is the last output ``o_L``, or with ``variant="weighted"`` one more average. No published
    start keeps a host's function: uniform weights scale ``h`` but not the attention output added to it.
    ``start="preserve"`` reads ``x + sum_j (n softmax(a)_j - 1) o_j``, where ``x`` is the sum of all ``o_j`` (on a
    post-norm host: the state), and ends with that sum. ``n`` scalars at block ``n``.

    Attributes:
        variant: ``"zero"``, ``"normalized"`` (LayerNorm without gain on every source) or ``"weighted"`` (output).
            The authors' ``base`` also removes the residual around attention, which no depth read does: not offered.
        eps: of that LayerNorm.
    """

    name: ClassVar[str] = "elc"
    carries: ClassVar = "outputs"

    variant: Literal["zero", "normalized", "weighted"] = "zero"
    eps: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(eps=self.eps)
        if self.variant not in ("zero", "normalized", "weighted"):
            raise ValueError(f"variant must be 'zero', 'normalized' or 'weighted', not {self.variant!r}")

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        return [(j,) for j in range(read + 1)] if read else None

    def refuse_stream(self, post_norm: bool) -> str | None:
        return NOT_A_SUM if post_norm and self.start == "published" else None

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        return Readout(self) if place.last and self.variant != "weighted" else ELCRead(self, place)


class ELCRead(Read):
    """One softmax average: as many scalars as sources."""

    def __init__(self, config: ELC, place: DepthPlace) -> None:
        super().__init__(config)
        self.normalized, self.eps = config.variant == "normalized", config.eps
        self.logits = nn.Parameter(torch.zeros(place.sources, device=place.device, dtype=place.dtype))

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        if self.normalized:
            sources = [nn.functional.layer_norm(s, s.shape[-1:], eps=self.eps) for s in sources]
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        if self.preserve:
            return weighted_sum(sources, relative_softmax(logits) - 1, x)
        return weighted_sum(sources, logits.softmax(-1))


class Readout(Read):
    """The end of the stream: the sum of everything, or the last block's output as published. No parameters."""

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        return x if self.preserve else sources[-1]
