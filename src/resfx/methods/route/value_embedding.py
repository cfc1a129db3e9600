"""Value embeddings (modded-nanogpt, nanochat): a table of the layer's own, read by token, is added to the values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import Learned, Linear, empty, set_values, uniform, zeros
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import wrong

from .base import RouteMethod, RoutePlace


@dataclass(frozen=True, kw_only=True)
class ValueEmbedding(RouteMethod):
    """``V' = V + g E[token]``: value residual learning with a table in the place of the first layer's values.

    ========== ======================================================================================================
    gate       what multiplies the table's row, and the start with ``start="published"``
    ========== ======================================================================================================
    token      ``2 sigmoid(W c_{1..channels})`` for each head, from the first features of what the attention reads;
               ``W = 0``, so 1 (nanochat)
    scalar     ``V' = a V + b E[token]`` with two numbers a layer, ``a = b = 0.5`` (modded-nanogpt)
    ========== ======================================================================================================

    The published table is drawn from ``U(-s, s)`` with ``s = sqrt(3 / d)``, as nanochat draws its value projections;
    with ``start="preserve"`` it is zero (and ``a = 1``), which is the host bit for bit. ``vocabulary * heads *
    head_dim`` parameters at a layer, far more than any other route has, and next to no arithmetic.

    Attributes:
        gate: as above.
        channels: features that the gate reads.
        layers: ``"alternate"``, every second one up to and with the last (nanochat), or ``"all"``.
    """

    name: ClassVar[str] = "value_embedding"
    wants: ClassVar = ("context", "tokens")
    parameters: ClassVar[str] = "vocabulary * kv_width + 32 kv_heads, every second layer"
    crosses: ClassVar[str] = "1 and the token numbers"
    saved: ClassVar[str] = "d / 2 + heads"  # a row and its gates, for a block's two adds

    gate: Literal["token", "scalar"] = "token"
    channels: int = 32
    layers: Literal["alternate", "all"] = "alternate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1:
            raise wrong(self, "channels", "channels must be at least 1 feature")

    def sources(self, layer: int, layers: int) -> list[int] | None:
        return [] if self.layers == "all" or (layers - 1 - layer) % 2 == 0 else None

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, RoutePlace)
        return EmbeddedValue(self, place)


class EmbeddedValue(Learned):
    """The table ``(vocabulary, width)`` and its gate."""

    def __init__(self, config: ValueEmbedding, place: RoutePlace) -> None:
        super().__init__()
        assert place.vocabulary is not None and place.context_width is not None
        self.preserve, factory = config.start == "preserve", factory_of(place)
        self.bound = math.sqrt(3 / place.context_width)
        self.table = empty(place.vocabulary, place.width, **factory)
        token = config.gate == "token"
        channels = min(config.channels, place.context_width)
        self.gate = Linear(channels, place.heads or 1, zeros, **factory) if token else None
        self.scales = None if token else empty(2, **factory)  # of the values, of the table
        self.reset_parameters()

    def reset_parameters(self) -> None:
        (zeros if self.preserve else uniform(self.bound))(self.table)
        if self.scales is not None:
            set_values(self.scales, torch.tensor([0.0, 1.0] if self.preserve else [0.5, 0.5]))

    def forward(self, sources: list[Tensor], v: Tensor, context: Tensor, tokens: Tensor) -> Tensor:
        row = nn.functional.embedding(tokens, self.table).unflatten(-1, v.shape[-2:])
        if self.gate is not None:
            gate = 2 * self.gate(context[..., : self.gate.in_features]).sigmoid()
            return v + (gate.unsqueeze(-1) * row).to(v.dtype)
        assert self.scales is not None
        own, other = self.scales.unbind()
        added = (own * v + other * row).to(v.dtype)
        return v + added if self.preserve else added

    def observe(self, sources: list[Tensor], v: Tensor, context: Tensor, tokens: Tensor) -> Observations:
        """``gate``, what multiplies the table's row, per row and head, or one number; ``row``, the norm of that row."""
        row = nn.functional.embedding(tokens, self.table).norm(dim=-1)
        if self.gate is not None:
            gate = Observed(2 * self.gate(context[..., : self.gate.in_features]).sigmoid(), ("head",))
        else:
            assert self.scales is not None
            gate = Observed(self.scales[1])
        return {"gate": gate, "row": Observed(row)}
