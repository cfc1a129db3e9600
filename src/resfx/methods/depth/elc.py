"""ELC-BERT, every layer counts (arXiv 2311.02265): every block reads a learned average of what the blocks wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import empty, set_values
from resfx.methods.observe import Observations, Observed, attention_map
from resfx.methods.options import wrong
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
        variant: ``"zero"``; ``"normalized"``: LayerNorm without gain on what the blocks added, where it is read (the
            embedding stays as it is), and, as published, on the end of the stream; ``"weighted"`` (output); or
            ``"base"``: the published logits start at ``0, .., 0, 1`` (softmax and all: not one-hot), and the sublayer
            behind the first one reads only what that wrote, ``o = A + mlp(A)``. With ``start="preserve"`` the
            shortcut around the first sublayer is ``h - g h`` with ``g = 0``: one more scalar a block, ``g = 1`` the
            published form. In a parallel block nothing reads that shortcut.
        eps: of that LayerNorm.
    """

    name: ClassVar[str] = "elc"
    carries: ClassVar = "outputs"
    parameters: ClassVar[str] = "n at block n"
    crosses: ClassVar[str] = "the embedding and what each block wrote"
    saved: ClassVar[str] = "d"

    variant: Literal["zero", "normalized", "weighted", "base"] = "zero"
    eps: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(eps=self.eps)
        if self.variant not in ("zero", "normalized", "weighted", "base"):
            raise wrong(self, "variant", "variant must be 'zero', 'normalized', 'weighted' or 'base'")

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        return [(j,) for j in range(read + 1)] if read or self.variant == "base" else None

    def targets(self, last: bool) -> tuple[str, ...]:
        return ("input", "shortcut") if self.variant == "base" and not last else ("stream",)

    def refuse_stream(self, post_norm: bool) -> str | None:
        return NOT_A_SUM if post_norm and self.start == "published" else None

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        if place.last and self.variant != "weighted":
            return LastOutput(self)
        return BaseRead(self, place) if self.variant == "base" else ELCRead(self, place)


class ELCRead(Read):
    """One softmax average: as many scalars as sources, where there are several; and a gate for :class:`BaseRead`."""

    config: ELC

    def __init__(self, config: ELC, place: DepthPlace, gated: bool = False) -> None:
        super().__init__(config)
        self.normalized, self.eps = config.variant == "normalized", config.eps
        self.logits = empty(place.sources, **factory_of(place)) if place.sources > 1 else None
        self.cut = empty(1, **factory_of(place)) if gated else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.cut is not None:
            nn.init.zeros_(self.cut)
        if self.logits is not None:
            start = torch.zeros(self.logits.shape)
            start[-1] = 1.0 if self.config.variant == "base" and not self.preserve else 0.0
            set_values(self.logits, start)

    def average(self, sources: list[Tensor], x: Tensor) -> Tensor:
        """``h_n``."""
        if self.logits is None:
            return x
        if self.normalized:
            sources = [sources[0], *(plain_norm(s, self.eps) for s in sources[1:])]
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        if self.preserve:
            return weighted_sum(sources, relative_softmax(logits) - 1, x)
        return weighted_sum(sources, logits.softmax(-1))

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.average(sources, x)

    def observe(self, sources: list[Tensor], x: Tensor) -> Observations:
        """``weights``, ``softmax(a)``, their entropy, and ``cut``, ``g``, where there is one."""
        found = {} if self.logits is None else attention_map(self.logits.softmax(-1))
        if self.cut is not None:
            found["cut"] = Observed(self.cut.squeeze(-1))
        return found


class BaseRead(ELCRead):
    """What the first sublayer of a block reads, and what its shortcut keeps of that."""

    def __init__(self, config: ELC, place: DepthPlace) -> None:
        gated = config.start == "preserve" and place.sublayers > 1
        super().__init__(config, place, gated=gated)
        self.several = place.sublayers > 1

    def read(self, sources: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
        h = self.average(sources, x)
        if not self.several:
            return h, h
        return h, torch.zeros_like(h) if self.cut is None else h - (self.cut * h).to(h.dtype)


class LastOutput(Read):
    """The end of the stream: the sum of everything, or the last block's output as published. No parameters."""

    config: ELC

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        if self.preserve:
            return x
        return plain_norm(sources[-1], self.config.eps) if self.config.variant == "normalized" else sources[-1]


def plain_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm without gain and bias."""
    return nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
