"""ELC-BERT, every layer counts (arXiv 2311.02265): every block reads a learned average of what the blocks wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Place
from resfx.ops.scores import relative_softmax
from resfx.ops.weighted_sum.formula import weighted_sum

from .base import NOT_A_SUM, DepthMethod, DepthPlace, Read


@dataclass(frozen=True, kw_only=True)
class ELC(DepthMethod):
    """Input of block ``n``: ``h_n = sum_j softmax(a_n)_j o_j`` with ``o_0`` the embedding and ``o_j`` what block ``j``
    added (equations from the authors' code; ``h_n`` itself is not carried on by the block).

    The end of the stream is the last output ``o_L``, or with ``variant="weighted"`` one more average. No published
    start keeps a host's function: uniform weights scale ``h`` but not the attention output added to it.
    ``start="preserve"`` reads ``x + sum_j (n softmax(a)_j - 1) o_j``, where ``x`` is the sum of all ``o_j`` (on a
    post-norm host: the state), and ends with that sum. ``n`` scalars at block ``n``.

    Attributes:
        variant: ``"zero"``, ``"normalized"`` (LayerNorm without gain on every source), ``"weighted"`` (output) or
            ``"base"``: the published logits start at ``0, .., 0, 1`` (softmax and all: not one-hot), and the sublayer
            behind the first one reads only what that wrote, ``o = A + mlp(A)``. With ``start="preserve"`` the
            shortcut around the first sublayer is ``h - g h`` with ``g = 0``: one more scalar a block, ``g = 1`` the
            published form. In a parallel block nothing reads that shortcut.
        eps: of that LayerNorm.
    """

    name: ClassVar[str] = "elc"
    carries: ClassVar = "outputs"

    variant: Literal["zero", "normalized", "weighted", "base"] = "zero"
    eps: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(eps=self.eps)
        if self.variant not in ("zero", "normalized", "weighted", "base"):
            raise ValueError(f"variant must be 'zero', 'normalized', 'weighted' or 'base', not {self.variant!r}")

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        return [(j,) for j in range(read + 1)] if read or self.variant == "base" else None

    def targets(self, last: bool) -> tuple[str, ...]:
        return ("input", "shortcut") if self.variant == "base" and not last else ("stream",)

    def refuse_stream(self, post_norm: bool) -> str | None:
        return NOT_A_SUM if post_norm and self.start == "published" else None

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        if place.last and self.variant != "weighted":
            return Readout(self)
        return BaseRead(self, place) if self.variant == "base" else ELCRead(self, place)


class ELCRead(Read):
    """One softmax average: as many scalars as sources; a single source needs none."""

    def __init__(self, config: ELC, place: DepthPlace) -> None:
        super().__init__(config)
        self.normalized, self.eps = config.variant == "normalized", config.eps
        start = torch.zeros(place.sources, device=place.device, dtype=place.dtype)
        if config.variant == "base" and not self.preserve:
            start[-1] = 1
        self.logits = nn.Parameter(start) if place.sources > 1 else None

    def average(self, sources: list[Tensor], x: Tensor) -> Tensor:
        """``h_n``."""
        if self.logits is None:
            return x
        if self.normalized:
            sources = [nn.functional.layer_norm(s, s.shape[-1:], eps=self.eps) for s in sources]
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        if self.preserve:
            return weighted_sum(sources, relative_softmax(logits) - 1, x)
        return weighted_sum(sources, logits.softmax(-1))

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.average(sources, x)


class BaseRead(ELCRead):
    """What the first sublayer of a block reads, and what its shortcut keeps of that."""

    def __init__(self, config: ELC, place: DepthPlace) -> None:
        super().__init__(config, place)
        self.several = place.sublayers > 1
        gated = self.preserve and self.several
        self.cut = nn.Parameter(torch.zeros((), device=place.device, dtype=place.dtype)) if gated else None

    def read(self, sources: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
        h = self.average(sources, x)
        if not self.several:
            return h, h
        return h, torch.zeros_like(h) if self.cut is None else h - self.cut * h


class Readout(Read):
    """The end of the stream: the sum of everything, or the last block's output as published. No parameters."""

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        return x if self.preserve else sources[-1]
