"""The depth-wise attention read of Residual Stream Duality (arXiv 2603.16039, section 2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import Linear, normal, zeros
from resfx.methods.observe import Observations, attention_map
from resfx.methods.options import wrong
from resfx.ops.scores import rms_norm
from resfx.ops.window.formula import windowed_attention_row

from .base import DepthMethod, DepthPlace, Read


@dataclass(frozen=True, kw_only=True)
class DepthRead(DepthMethod):
    """``z = softmax(W_Q h . (W W_K)^T / sqrt(d_k)) W W_V`` over the last ``window`` block states ``W`` of each token.

    ``W`` holds the states before this block and the last ``window - 1`` before it, the current one included. The
    operator is :func:`resfx.ops.window.formula.windowed_attention` with layers for positions; here it computes the one
    row that a block needs. The paper leaves open how ``z`` enters the block; here it does as ``h + W_O z``, read before
    every block, with a norm in front of the projections. ``W_O = 0`` is the preserving start; ``"published"`` draws
    it like the others (no start is published).

    ``W_Q`` per block, ``d d_k``; ``W_K``, ``W_V`` and ``W_O`` likewise. A read of a single state (the first block, or
    ``window=1``) has no query or key: it is ``W_V h``.

    Attributes:
        window: how many states, ``K``; ``None`` for all.
        dim: ``d_k`` over all heads; ``None`` for the width of the stream.
        heads: attention heads.
        at: ``"input"``: the first branch of the block reads ``h + W_O z``, the shortcut keeps ``h``; ``"stream"``:
            the shortcut takes it too.
        shared: one ``W_K`` and ``W_V`` for all blocks, so that every state is projected once; else per block.
        norm: root-mean-square norm without gain in front of the projections.
        eps: of that norm.
    """

    name: ClassVar[str] = "depth_read"
    parameters: ClassVar[str] = "4 d^2"
    crosses: ClassVar[str] = "window states"
    saved: ClassVar[str] = "(3 n + 4) d + (heads + 1) n + 1"

    window: int | None = 4
    dim: int | None = None
    heads: int = 1
    at: Literal["input", "stream"] = "input"
    shared: bool = False
    norm: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(window=self.window, dim=self.dim, heads=self.heads, eps=self.eps)
        if self.at not in ("input", "stream"):
            raise wrong(self, "at", "at must be 'input' or 'stream'")
        if self.dim is not None and self.dim % self.heads:
            raise wrong(self, "dim", f"dim must divide into heads={self.heads}")

    def refuse(self, place: Place) -> str | None:
        if (self.dim or place.width) % self.heads:
            return f"a width of {self.dim or place.width} does not divide into {self.heads} heads"
        return None

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        first = 0 if self.window is None else max(0, read - self.window + 1)
        return None if last else [(j,) for j in range(first, read + 1)]

    def targets(self, last: bool) -> tuple[str, ...]:
        return (self.at,)

    def build_source(self, place: Place) -> nn.Module | None:
        return KeyValue(self, place, keys=self.window != 1) if self.shared else None

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        return AttentionRead(self, place)


class KeyValue(nn.Module):
    """Keys and values of one state, ``(..., 2 d_k)``; values alone where nothing is ever compared."""

    def __init__(self, config: DepthRead, place: Place, keys: bool) -> None:
        super().__init__()
        self.eps = config.eps if config.norm else None
        dim = config.dim or place.width
        self.key = _projection(place.width, dim, place) if keys else None
        self.value = _projection(place.width, dim, place)

    def forward(self, state: Tensor) -> Tensor:
        h = normed(state, self.eps)
        return self.value(h) if self.key is None else torch.cat([self.key(h), self.value(h)], -1)


class AttentionRead(Read):
    """One block's read over ``n`` states, or over their keys and values where those are shared."""

    def __init__(self, config: DepthRead, place: DepthPlace) -> None:
        super().__init__(config)
        self.heads, self.eps = config.heads, config.eps if config.norm else None
        self.dim = config.dim or place.width
        several = place.sources > 1
        self.query = _projection(place.width, self.dim, place) if several else None
        self.projection = None if config.shared else KeyValue(config, place, keys=several)
        self.out = _projection(self.dim, place.width, place, zero=self.preserve)

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        rows = sources if self.projection is None else [self.projection(s) for s in sources]
        values = [row[..., -self.dim :] for row in rows]
        if self.query is None:
            z = values[-1]
        else:
            q = self._split(self.query(normed(x, self.eps)))
            keys = [self._split(r[..., : self.dim]) for r in rows]
            z = windowed_attention_row(q, keys, [self._split(v) for v in values]).flatten(-2)
        return x + self.out(z.to(self.out.weight.dtype)).to(x.dtype)

    def observe(self, sources: list[Tensor], x: Tensor) -> Observations:
        """``weights`` of the states for every head, and their entropy; none where one state is read."""
        if self.query is None:
            return {}
        rows = sources if self.projection is None else [self.projection(s) for s in sources]
        q = self._split(self.query(normed(x, self.eps)))
        scores = [(q * self._split(r[..., : self.dim])).sum(-1) / math.sqrt(q.shape[-1]) for r in rows]
        return attention_map(torch.stack(scores, -1).softmax(-1), "head")

    def _split(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.heads, self.dim // self.heads))


def normed(x: Tensor, eps: float | None) -> Tensor:
    """``x``, normalised if there is an epsilon to do it with."""
    return x if eps is None else rms_norm(x, eps).to(x.dtype)


def _projection(width: int, dim: int, place: Place, zero: bool = False) -> Linear:
    return Linear(width, dim, zeros if zero else normal(1 / math.sqrt(width)), **factory_of(place))
