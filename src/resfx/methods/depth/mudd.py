"""MUDDFormer (arXiv 2502.12170): token-dependent dense connections, apart for queries, keys, values and residual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import Linear, empty, normal, set_values, zeros
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import wrong
from resfx.ops.scores import rms_norm, rms_scales
from resfx.ops.weighted_sum.formula import weighted_sums

from .base import DepthMethod, DepthPlace, Read


@dataclass(frozen=True, kw_only=True)
class MUDD(DepthMethod):
    """After block ``i``: ``Y^s = sum_j A^s_j X_j`` with ``A = gelu(RMSNorm(X_i) W_1) W_2 + a`` for every stream ``s``.

    ``X_0`` is the embedding, ``X_j`` the output of block ``j``. The next block's attention projects queries, keys and
    values from ``norm(Y^q)``, ``norm(Y^k)``, ``norm(Y^v)`` and its shortcut is ``Y^r``; after the last block there is
    one stream. All three use the host's opening norm with its own weights (the authors train three copies); a fused
    projection runs once per stream. In a parallel block the MLP reads ``Y^r``.

    The published start, ``W_2 = 0`` and ``a`` one-hot, computes what the host does. ``start="preserve"`` learns the
    difference, ``X_i + sum_j (A_j - e_ij) X_j``. Parameters after block ``i``, with ``l = i + 1`` sources and ``C``
    streams: ``d K + K C l + C l``, ``K = C l`` (``d l + l^2 + l`` after the last).

    Attributes:
        streams: which of ``q``, ``k``, ``v``, ``r`` have connections of their own; the others keep ``X_i``.
        hidden: width ``K``, or ``None`` for as many as there are weights.
        dilation: distance between sources, ``k``: ``X_j`` with ``j = i (mod k)``.
        period: connections after every ``period``-th block only, ``p``; the other blocks read ``X_i``.
        window: only the last so many sources and the embedding; ``None`` for all.
        prepost: normalise sources and result: ``X_i + c norm(sum_j A_j g norm(X_j))`` with ``a = 0``, ``g = 1`` and
            ``c = 0.001`` on every stream (equation 10).
        eps: of the norms.
    """

    name: ClassVar[str] = "mudd"
    parameters: ClassVar[str] = "d K + K C l + C l, K = C l for l sources and C = 4 streams"
    crosses: ClassVar[str] = "the state before each block"
    saved: ClassVar[str] = "2 d + 3 o n + 1 + max(o - 2, 0) (6 d + 1)"  # the norm and a fused projection for q, k and v

    streams: str = "qkvr"
    hidden: int | None = None
    dilation: int = 1
    period: int = 1
    window: int | None = None
    prepost: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(hidden=self.hidden, eps=self.eps, dilation=self.dilation, period=self.period, window=self.window)
        if self.window is not None and self.dilation > 1:
            raise wrong(self, "window", "window and dilation both leave sources out: one must stay at its default")
        if not self.streams or set(self.streams) - set("qkvr") or len(set(self.streams)) != len(self.streams):
            raise wrong(self, "streams", "streams must be some of 'qkvr', each once")

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        if read == 0 or read % self.period:
            return None
        if self.window is not None:
            return [(j,) for j in range(read + 1) if j == 0 or j > read - self.window]
        return [(j,) for j in range(read % self.dilation, read + 1, self.dilation)]

    def targets(self, last: bool) -> tuple[str, ...]:
        return ("stream",) if last else tuple(self.streams)

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        return MUDDRead(self, place)


class MUDDRead(Read):
    """One generator of connection weights for all streams of a place."""

    def __init__(self, config: MUDD, place: DepthPlace) -> None:
        super().__init__(config)
        self.eps = config.eps
        factory, count = factory_of(place), place.outputs * place.sources
        self.expand = Linear(place.width, config.hidden or count, normal(1 / math.sqrt(place.width)), **factory)
        self.weigh = Linear(self.expand.out_features, count, zeros, **factory)
        self.static = empty(place.outputs, place.sources, **factory)
        self.scale = empty(place.width, **factory) if config.prepost else None
        self.gain = empty(place.width, **factory) if config.prepost else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        start = torch.zeros(self.static.shape)
        if self.scale is not None and self.gain is not None:
            nn.init.constant_(self.scale, 1e-3)
            nn.init.ones_(self.gain)
        elif not self.preserve:
            start[:, -1] = 1
        set_values(self.static, start)

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor | tuple[Tensor, ...]:
        weights = self.weights(x)
        if self.gain is not None:
            weights = weights * rms_scales(sources, self.eps).unsqueeze(-2)
        mixed = [self._finish(total, x) for total in weighted_sums(sources, weights)]
        return tuple(mixed) if len(mixed) > 1 else mixed[0]

    def weights(self, x: Tensor) -> Tensor:
        """``A (..., streams, sources)``, less one for the newest source with ``start="preserve"``."""
        hidden = nn.functional.gelu(self.expand(rms_norm(x, self.eps).to(self.expand.weight.dtype)))
        dynamic = self.weigh(hidden).unflatten(-1, self.static.shape)
        return dynamic.to(torch.promote_types(dynamic.dtype, torch.float32)) + self.static

    def observe(self, sources: list[Tensor], x: Tensor) -> Observations:
        """``weights``, ``A`` for every stream; with ``prepost`` those of the normalised sources, ``X_i`` apart."""
        weights = self.weights(x).clone()
        if self.scale is None:
            weights[..., -1] += self.preserve
        return {"weights": Observed(weights, ("stream", "source"))}

    def _finish(self, total: Tensor, x: Tensor) -> Tensor:
        if self.scale is not None and self.gain is not None:
            return x + (self.scale * rms_norm(total * self.gain, self.eps)).to(x.dtype)
        return x + total.to(x.dtype) if self.preserve else total.to(x.dtype)
