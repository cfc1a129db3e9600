"""DeepCrossAttention (arXiv 2502.06785): queries, keys and values each read their own mixture of the depth stack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import empty, normal, zeros
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import wrong
from resfx.ops.chunks import apart, cut, is_cut, run_chunk
from resfx.ops.register import accumulator, plus

from .base import NOT_A_SUM, DepthMethod, DepthPlace, Read


@dataclass(frozen=True, kw_only=True)
class DCA(DepthMethod):
    """Three generalised residual networks (GRN-v3) per block: ``g = sum_j G_j * (b_j + relu(w . G_j))`` for q, k and v.

    ``G`` holds the embedding and what every block added; the query mixture is also the block's shortcut, and one more
    mixture ends the stream. ``b = 1, w = 0`` is the host's sum, so both starts compute what it does; ``"preserve"``
    does so bit for bit, ``x + sum_j (coefficient - 1) G_j``, and learns ``b - 1``.

    The printed form is dead at ``w = 0``: its ReLU passes no gradient there, and ``w`` stays zero for ever. So it needs
    ``start="published"`` and a ``w_std`` above zero. The default is ``relu(b + w . G)``, which the paper's appendix H
    describes: the same start, and ``w`` learns.
    ``3 (d t + d)`` parameters at a block with ``t`` columns.

    Attributes:
        k: keep only the embedding, the last ``k`` outputs and the *sum* of those between (``k``-DCA); ``None`` for all.
        form: ``"live"``, ``relu(b + w . G)``, or ``"printed"``, ``b + relu(w . G)``.
        w_std: standard deviation of ``w`` times ``sqrt(d)`` at the start; 0 as published. Above 0 neither form starts
            at the host's function.
    """

    name: ClassVar[str] = "dca"
    carries: ClassVar = "outputs"
    parameters: ClassVar[str] = "3 d (t + 1), t sources"
    crosses: ClassVar[str] = "the state, its 3 mixtures, the embedding and what each block added"
    saved: ClassVar[str] = "(2 o n + 1) d + (o - 1) (6 d + 1)"  # the norm and a fused projection for each mixture

    k: int | None = None
    form: Literal["live", "printed"] = "live"
    w_std: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(k=self.k)
        if self.form not in ("live", "printed"):
            raise wrong(self, "form", "form must be 'live' or 'printed'")
        if self.w_std < 0:
            raise wrong(self, "w_std", "w_std must not be negative")
        if self.form == "printed" and (self.start != "published" or not self.w_std):
            raise wrong(
                self, "form",
                "form='printed' cannot start where the host stands: at w = 0 its ReLU passes no gradient and w never"
                " learns", "start='published' with w_std above 0, such as w_std=0.1, or form='live'",
            )  # fmt: skip

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        if self.k is None or read <= self.k:
            return [(j,) for j in range(read + 1)]
        recent = range(read - self.k + 1, read + 1)
        middle = tuple(range(1, recent.start))
        return [(0,), *([middle] if middle else []), *((j,) for j in recent)]

    def targets(self, last: bool) -> tuple[str, ...]:
        return ("stream",) if last else ("qr", "k", "v")

    def refuse_stream(self, post_norm: bool) -> str | None:
        return NOT_A_SUM if post_norm and self.start == "published" else None

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        return DCARead(self, place)


class DCARead(Read):
    """One mixture per output: a weight per source and feature, and one vector that gates every source."""

    def __init__(self, config: DCA, place: DepthPlace) -> None:
        super().__init__(config)
        self.live = config.form == "live"
        self.w_std = config.w_std / math.sqrt(place.width)
        self.b = empty(place.outputs, place.sources, place.width, **factory_of(place))
        self.w = empty(place.outputs, place.width, **factory_of(place))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.b, 0.0 if self.preserve else 1.0)
        (normal(self.w_std) if self.w_std else zeros)(self.w)

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor | tuple[Tensor, ...]:
        wide = accumulator(x.dtype)
        b, w, form = self.b.to(wide), self.w.to(wide), (self.live, self.preserve)
        if is_cut(sources):
            parts = [run_chunk(mixtures, sources[at], apart(b[:, at]), w, *form) for at in cut(len(sources))]
        else:
            parts = [mixtures(sources, b, w, *form)]
        totals = [plus(of_output).to(x.dtype) for of_output in zip(*parts, strict=True)]
        mixed = [x + total if self.preserve else total for total in totals]
        return tuple(mixed) if len(mixed) > 1 else mixed[0]

    def observe(self, sources: list[Tensor], x: Tensor) -> Observations:
        """``weights``: the coefficient of every source in every mixture, averaged over features; 1 is the host's."""
        wide = accumulator(x.dtype)
        b, w = self.b.to(wide), self.w.to(wide)
        found = [
            torch.stack([_coefficient(b[o, j], (g.to(wide) * w[o]).sum(-1, keepdim=True), self.live, self.preserve)
                         .mean(-1) for j, g in enumerate(sources)], -1)
            for o in range(len(b))
        ]  # fmt: skip
        return {"weights": Observed(torch.stack(found, -2) + self.preserve, ("mixture", "source"))}


def mixtures(sources: Sequence[Tensor], b: Tensor, w: Tensor, live: bool, preserve: bool) -> list[Tensor]:
    """``sum_j G_j * (b_j + relu(w . G_j))`` for every output; less the plain sum where that is the base.

    Args:
        sources: ``n`` tensors ``(..., d)``.
        b: ``(outputs, n, d)``.
        w: ``(outputs, d)``, in the type of the result.
        live: whether ``b`` lies inside of the gate.
        preserve: whether ``b`` is zero where a source only keeps its place in the host's sum.
    """
    columns = [s.to(w.dtype) for s in sources]
    return [
        plus(g * _coefficient(row, (g * gate).sum(-1, keepdim=True), live, preserve)
             for row, g in zip(rows, columns, strict=True))
        for rows, gate in zip(b, w, strict=True)
    ]  # fmt: skip


def _coefficient(b: Tensor, dynamic: Tensor, live: bool, preserve: bool) -> Tensor:
    if not live:
        return b + torch.relu(dynamic)
    return torch.relu((1 + b) + dynamic) - 1 if preserve else torch.relu(b + dynamic)
