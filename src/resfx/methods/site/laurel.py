"""LAuReL (Learned Augmented Residual Layer, arXiv 2411.07501): learned weights and a low-rank map of the shortcut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import Learned, Linear, empty, normal, zeros
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import wrong
from resfx.ops.register import accumulator, in_type

from .sums import host_sum, weighted


@dataclass(frozen=True, kw_only=True)
class LAuReL(Method):
    """``a f + b (x + B A x)``, LAuReL-RW+LR (equation 5); ``rank=0`` is LAuReL-RW, ``weights=False`` LAuReL-LR.

    The paper keeps ``a`` and ``b`` bounded by "softmax or sigmoid" and prints no start. With ``start="published"``
    ``(a, b)`` is the bounded pair itself, 1/2 each at first; with ``"preserve"`` twice that, 1 each, so that
    ``(x + f) + (a - 1) f + (b - 1) x + b B A x`` is the host bit for bit. ``B = 0`` and ``A`` is drawn from
    ``N(0, 1/d)`` in both. ``2 + 2 d rank`` parameters per site. LAuReL-PA, which reads earlier activations, is left to
    the methods that read over depth.

    Attributes:
        rank: ``r`` of ``A (r, d)`` and ``B (d, r)``; the paper has 16 for ResNet-50, 4 and 64 for language models.
        weights: learn ``a`` and ``b``.
        bound: how they are bounded; ``"none"`` learns them as they are, from 1 each in both starts.
        per_feature: weights ``(d,)`` each (section 2.4).
    """

    name: ClassVar[str] = "laurel"
    parameters: ClassVar[str] = "2 d rank + 2"
    saved: ClassVar[str] = "2 d + rank"

    rank: int = 16
    weights: bool = True
    bound: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    per_feature: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 0:
            raise wrong(self, "rank", "rank must be 0 (no low-rank map) or a rank")
        if not self.rank and not self.weights:
            raise wrong(self, "rank", "rank=0 and weights=False leave nothing to learn", "one of the two")

    def build(self, place: Place) -> nn.Module:
        return AugmentedAdd(self, place)


class AugmentedAdd(Learned):
    """One add: logits ``(2, 1)`` or ``(2, d)`` of ``a`` and ``b``, and the map ``B A``."""

    def __init__(self, config: LAuReL, place: Place) -> None:
        super().__init__()
        self.config, self.preserve = config, config.start == "preserve"
        factory, d = factory_of(place), place.width
        self.logits = empty(2, d if config.per_feature else 1, **factory) if config.weights else None
        self.down = Linear(d, config.rank, normal(1 / math.sqrt(d)), **factory) if config.rank else None
        self.up = Linear(config.rank, d, zeros, **factory) if config.rank else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.logits is not None:
            nn.init.zeros_(self.logits)

    def pair(self, dtype: torch.dtype) -> Tensor:
        """``(a - 1, b - 1)``, ``(2, 1)`` or ``(2, d)``."""
        assert self.logits is not None
        logits = in_type(self.logits, dtype)
        if self.config.bound == "none":
            return logits
        share = logits.sigmoid() if self.config.bound == "sigmoid" else logits.softmax(0)
        return (share + share if self.preserve else share) - 1

    def forward(self, x: Tensor, f: Tensor, c: Tensor | None, total: Tensor | None = None) -> Tensor:
        base, terms = host_sum(x, f, total), []
        wide = accumulator(base.dtype)
        one = torch.ones(1, dtype=wide, device=base.device)
        own = one
        if self.logits is not None:
            a, b = self.pair(wide).unbind()
            terms, own = [(a, f), (b, x)], one + b
        if self.down is not None and self.up is not None:
            terms.append((own, self.up(self.down(x))))
        return weighted(terms, base, base.dtype)

    def observe(self, x: Tensor, f: Tensor, c: Tensor | None, total: Tensor | None = None) -> Observations:
        """``branch``, ``a``, and ``shortcut``, ``b``, as means over the features; ``low_rank``, per row the norm of
        ``b B A x``."""
        wide, found = accumulator(x.dtype), {}
        own = torch.ones(1, dtype=wide, device=x.device)
        if self.logits is not None:
            a, own = (1 + self.pair(wide)).unbind()
            found = {"branch": Observed(a.mean()), "shortcut": Observed(own.mean())}
        if self.down is not None and self.up is not None:
            found["low_rank"] = Observed((own * in_type(self.up(self.down(x)), wide)).norm(dim=-1))
        return found

    def extra_repr(self) -> str:
        return f"rank={self.config.rank}, bound={self.config.bound}, start={self.config.start}"
