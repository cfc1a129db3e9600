"""ShortSWA: short sliding-window attention as a local mixer before global attention (arXiv 2603.16039, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resfx._torch import has_hooks, is_exporting
from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import Linear, zeros
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import wrong
from resfx.ops.register import accumulator
from resfx.ops.window.formula import attend, reach, windowed_attention

from .mixer import Mixer, State, last, readable


@dataclass(frozen=True, kw_only=True)
class ShortSWA(Method):
    """A short windowed attention before each self-attention: Algorithm 1, ``S = H + ShortSWA(Norm(H))``.

    The attention's branch and its shortcut then read ``S``. The norm starts as a copy of the host's own; where the
    host norms after the add (BERT) its input is a norm's output already and none is added. Bidirectional hosts get a
    centred window. ``start="preserve"`` has a zero output projection: bit for bit the host. Padding is not read; texts
    packed into one row are not told apart.

    Attributes:
        window: positions read, ``w``; the paper's 128 matches the chunks of common kernels.
        kind: ``"sliding"`` reads the last ``w`` positions, ``"chunk"`` the position's own chunk of ``w`` so far; chunks
            are counted from the first position of a row, padding included.
        heads: number of heads; 0 for as many as the host's attention.
        head_dim: features of a head; 0 to split the width among the heads. The inner width is ``d_a = heads *
            head_dim``: a lean mixer has ``d_a`` far below ``d`` (``heads=1, head_dim=32``).
        rope: rotate queries and keys by their position (base 10000); the source leaves positions open.
        placement: ``"residual"`` as above; ``"branch"`` mixes only what the attention reads, after the host's norm:
            ``c + ShortSWA(c)`` with ``start="preserve"``, ``ShortSWA(c)`` alone with ``"published"``.
    """

    name: ClassVar[str] = "short_swa"
    scope: ClassVar[str] = "sequence"
    parameters: ClassVar[str] = "4 d^2, and the norm's"
    kept: ClassVar[str] = "keys and values of window - 1 positions"
    saved: ClassVar[str] = "(3 d + 1) / 2 + (3 window - 1) heads head_dim / window + (heads + 1 / 4) (2 window - 1)"

    window: int = 128
    kind: Literal["sliding", "chunk"] = "sliding"
    heads: int = 0
    head_dim: int = 0
    rope: bool = False
    placement: Literal["residual", "branch"] = "residual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise wrong(self, "window", "window must be at least 1 position")
        if self.heads < 0:
            raise wrong(self, "heads", "heads must be 0 (as the host) or a number of heads")
        if self.head_dim < 0:
            raise wrong(self, "head_dim", "head_dim must be 0 (the width over the heads) or features")
        if self.rope and self.head_dim % 2:
            raise wrong(self, "head_dim", "rope turns features in pairs: head_dim must be even")
        for field, allowed in (("kind", ("sliding", "chunk")), ("placement", ("residual", "branch"))):
            if getattr(self, field) not in allowed:
                raise wrong(self, field, f"{field} must be one of {allowed}")

    @property
    def points(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("stream",) if self.placement == "residual" else ("attention",)

    def refuse(self, place: Place) -> str | None:
        heads, features = self.heads_at(place)
        if not self.head_dim and place.width % heads:
            return f"a width of {place.width} does not split into {heads} heads"
        if self.rope and features % 2:
            return f"heads of {features} features cannot be rotated in pairs"
        return None

    def heads_at(self, place: Place) -> tuple[int, int]:
        """The number of heads at a place, and the features of each."""
        heads = self.heads or place.heads or 1
        return heads, self.head_dim or place.width // heads

    def build(self, place: Place) -> nn.Module:
        return ShortWindow(self, place)


class ShortWindow(Mixer):
    """One mixer. Parameters ``4 d d_a``, and the norm's; multiplications per token ``4 d d_a + 2 w d_a``; state per
    sequence ``2 (w - 1) d_a`` elements and a flag per position."""

    def __init__(self, config: ShortSWA, place: Place) -> None:
        super().__init__()
        self.config, self.causal = config, place.causal
        self.heads, features = config.heads_at(place)
        d, inner, factory = place.width, self.heads * features, factory_of(place)
        self.norm = place.norm if config.placement == "residual" else None
        self.q, self.k, self.v = (Linear(d, inner, **factory) for _ in range(3))
        self.o = Linear(inner, d, zeros if config.start == "preserve" else None, **factory)
        self.streams = (4 if config.kind == "chunk" else 3) if place.causal and config.window > 1 else 0
        self.shortcut = config.placement == "branch" and config.start == "preserve"

    def forward(
        self, h: Tensor, mask: Tensor | None = None, state: State | None = None, keep: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        c = (h if self.norm is None else self.norm(h)).to(self.o.weight.dtype)
        q, k, v = (self._split(x) for x in self._project(c))
        allowed = readable(h, mask)
        if state is None and not keep:
            mixed = self._mix(q, k, v, allowed)
            return self._merge(mixed, h)
        if allowed is None:
            allowed = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
        kept, seen = self.config.window - 1, None
        if state is not None:
            k, v = torch.cat((state[0], k), -2), torch.cat((state[1], v), -2)
            allowed, seen = torch.cat((state[2], allowed), -1), state[3] if len(state) > 3 else None
        out = self._merge(self._mix(q, k, v, allowed, seen), h)
        after: State = (last(k, kept, -2), last(v, kept, -2), last(allowed, kept, -1))
        if self.config.kind == "chunk":
            before = torch.zeros(h.shape[0], dtype=torch.int64, device=h.device) if seen is None else seen
            after += (before + h.shape[1],)
        return out, after

    def observe(
        self, h: Tensor, mask: Tensor | None = None, state: State | None = None, keep: bool = False
    ) -> Observations:
        """``weights`` of every head by distance, ``t - j``, for each position; 0 where there is no such neighbour.
        None while decoding: a call that goes on has no row to show.
        """
        if state is not None:
            return {}
        c = (h if self.norm is None else self.norm(h)).to(self.o.weight.dtype)
        q, k = self._split(self.q(c)), self._split(self.k(c))
        size, window = h.shape[1], self.config.window
        one = torch.eye(size, dtype=accumulator(q.dtype), device=q.device).expand(*q.shape[:-2], size, size)
        weights = self._mix(q, k, one, readable(h, mask))  # the weights themselves: what is read is who is read
        chunk, (left, right) = self.config.kind == "chunk", reach(window, self.causal)
        right = window - 1 if chunk and not self.causal else right
        left = window - 1 if chunk else left
        at = torch.arange(size, device=q.device).unsqueeze(-1) - torch.arange(-right, left + 1, device=q.device)
        there = (at >= 0) & (at < size)
        weights = weights.gather(-1, at.clamp(0, size - 1).expand(*weights.shape[:-1], -1)) * there
        return {"weights": Observed(weights.transpose(1, 2), ("head", "distance"), -right)}

    def _project(self, c: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values. Where ``c`` gets a gradient, narrow ones come from one product, so that three
        tensors of the stream's width need not be written and added up: a tenth of a training step at ``d_a = d / 8``.
        """
        parts = (self.q, self.k, self.v)
        narrow = 4 * self.o.in_features <= self.o.out_features
        if narrow and c.requires_grad and not is_exporting() and all(untouched(p) for p in parts):
            return F.linear(c, torch.cat([p.weight for p in parts])).chunk(3, -1)
        return [p(c) for p in parts]

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, seen: Tensor | None = None) -> Tensor:
        if self.config.rope:
            q, k = rotate(q, k)
        window = self.config.window
        if seen is not None:
            return self._mix_chunk(q, k, v, allowed, seen)
        chunk = self.config.kind == "chunk"
        return windowed_attention(q, k, v, window, causal=self.causal, chunk=chunk, mask=allowed)

    def _mix_chunk(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, seen: Tensor) -> Tensor:
        """The chunk form after ``seen (batch,)`` positions: chunks lie where the whole sequence puts them."""
        window, size = self.config.window, q.shape[-2]
        j = seen.unsqueeze(-1) + torch.arange(1 - window, size, device=q.device)
        i = j[:, window - 1 :].unsqueeze(-1)
        j = j.unsqueeze(-2)
        same = torch.div(i, window, rounding_mode="floor") == torch.div(j, window, rounding_mode="floor")
        readers = same & (j <= i)
        if allowed is not None:
            readers = readers & allowed.unsqueeze(-2)
        return attend(q, k, v, readers.unsqueeze(1), q.shape[-1] ** -0.5)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _merge(self, x: Tensor, h: Tensor) -> Tensor:
        out = self.o(x.transpose(-3, -2).flatten(-2)).to(h.dtype)
        return h + out if self.shortcut else out

    def extra_repr(self) -> str:
        reads, size = "causal" if self.causal else "centred", self.o.in_features // self.heads
        return f"{self.config.kind} window {self.config.window}, {reads}, {self.heads} heads of {size}"


def untouched(linear: nn.Module) -> bool:
    """Whether a projection is still what it was built as: nothing wraps, shards, quantises, moves or watches it."""
    if type(linear) is not Linear or "forward" in vars(linear) or linear.bias is not None:
        return False
    return type(linear.weight) in (Tensor, nn.Parameter) and not has_hooks(linear)


def rotate(q: Tensor, k: Tensor, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Rotary positions: queries are the last positions of the keys. Only differences of positions count."""
    half, wide = q.shape[-1] // 2, accumulator(q.dtype)
    speed = base ** (-torch.arange(half, device=q.device, dtype=wide) / half)
    angle = torch.arange(k.shape[-2], device=q.device, dtype=wide).unsqueeze(-1) * speed
    cos, sin = angle.cos(), angle.sin()

    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.to(wide).split(half, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)

    first = k.shape[-2] - q.shape[-2]
    return turn(q, cos[first:], sin[first:]), turn(k, cos, sin)
