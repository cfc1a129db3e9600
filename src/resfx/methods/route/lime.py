"""Layer-Integrated Memory (LIMe, arXiv 2502.09245): every head mixes the keys and values of all heads so far."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import Learned, empty, set_values, zeros
from resfx.methods.observe import Observations, Observed
from resfx.ops.register import accumulator, in_type

from .base import RouteMethod, RoutePlace


@dataclass(frozen=True, kw_only=True)
class LIMe(RouteMethod):
    """``K'_{l,i} = sum_{m <= l} sum_h R_{l,i,(m,h)} K_{m,h}``, and values with the same router ``R``.

    ``i`` and ``h`` are heads of keys and values, ``m`` layers; keys are mixed before they are rotated, which rotation
    does not tell from after. ``start="published"`` draws the weights of earlier layers from ``U(-b, b)`` with ``b =
    sqrt(3 / (l + 1) / heads)`` and has the identity for the layer's own heads, as the authors' code (the paper's
    listing, read as Python, multiplies by ``heads``). ``"preserve"`` learns the difference from the host,
    ``K_l + R K`` with ``R = 0``.

    ``heads^2 (l + 1)`` parameters at layer ``l``, counted from 0; the first has none.
    """

    name: ClassVar[str] = "lime"
    points: ClassVar[tuple[str, ...]] = ("k", "v")
    shared: ClassVar[bool] = True
    parameters: ClassVar[str] = "heads^2 (l + 1) at layer l"
    crosses: ClassVar[str] = "1 and every layer's keys and values"
    saved: ClassVar[str] = "n d"  # keys and values, for a block's two adds

    def sources(self, layer: int, layers: int) -> list[int] | None:
        return list(range(layer)) if layer else None

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, RoutePlace)
        return Router(self, place)


class Router(Learned):
    """``R (heads, n * heads)`` over the heads of ``n - 1`` earlier layers and, last, of the layer itself."""

    def __init__(self, config: LIMe, place: RoutePlace) -> None:
        super().__init__()
        self.preserve, self.heads = config.start == "preserve", place.heads or 1
        self.weight = empty(self.heads, (place.sources + 1) * self.heads, **factory_of(place))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.preserve:
            return zeros(self.weight)
        start = torch.empty(self.weight.shape)
        bound = math.sqrt(3 / start.shape[1])
        nn.init.uniform_(start, -bound, bound)
        start[:, -self.heads :] = torch.eye(self.heads)
        return set_values(self.weight, start)

    def forward(self, sources: list[Tensor], v: Tensor) -> Tensor:
        wide = accumulator(v.dtype)
        heads = in_type(torch.cat([*sources, v], -2), wide)  # (batch, positions, n * heads, head_dim)
        kind, weight = v.device.type, in_type(self.weight, wide)
        # Autocast would mix in half precision. Elsewhere a region would only stand in a graph.
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext():
            mixed = in_type(weight @ heads, v.dtype)
        return v + mixed if self.preserve else mixed

    def observe(self, sources: list[Tensor], v: Tensor) -> Observations:
        """``router``, ``R``: the heads of each layer that a head reads, the layer itself last; the learned difference
        from the host where its start is preserved."""
        return {"router": Observed(self.weight.unflatten(1, (-1, self.heads)).mT, ("head", "read", "source"))}

    def extra_repr(self) -> str:
        return f"heads={self.heads}, sources={self.weight.shape[1] // self.heads}"
