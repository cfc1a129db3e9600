"""Alternating Updates (AltUp, arXiv 2301.13310): one channel is computed, all others are predicted and corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import Learned, empty, set_values
from resfx.methods.observe import Observations, Observed, apart
from resfx.ops.channels.formula import combine, inverse_deviation, mix
from resfx.ops.register import accumulator, in_type

from .base import Expand, Readout, WideStream
from .hyper_connections import HyperWrite, check_wide, observed_channels, readout_of

ROUTER_STD = 0.02
"""Of the router's weights at the start, and with ``start="published"`` of the two maps behind it: Gemma 3n's."""


@dataclass(frozen=True, kw_only=True)
class AltUp(Method):
    """Predict ``X^_i = sum_j p_ij X_j``, compute ``Y = L(X_j*)``, correct ``X'_i = X^_i + g_i (Y - X^_j*)``.

    This is the paper's algorithm 1 with a sublayer and its shortcut as the layer, ``Y = X_j* + f(X_j*)``; the paper's
    layers are blocks. So ``X' = (P + g (e_j* - P_j*)^T) X + g f``: Hyper-Connections with tied coefficients, and each
    branch reads one channel as it is. ``P = I`` and ``g = 1`` is the host bit for bit, if the channels leave as their
    mean; they part because each is computed at other adds.

    All channels enter equal; ``start="published"`` sums them at the end (Recycled-AltUp, section 4.1, which needs no
    wider embedding). ``n^2 + n`` parameters per site.

    Gemma 3n, the model that ships AltUp, computes something else in four places. Two are options here, which
    ``AltUp.gemma3n()`` sets; both are held against the code of transformers, 5.24:

    - The layer starts from the channel's prediction, ``Y = L(X^_j*)``, so that ``X' = P X + g f`` (``reads``).
    - ``P`` and ``g`` are the token's own, with the router ``r(x) = tanh(W_r N(x) / d)``, ``N`` an RMS norm:
      ``P = I + W_p r(X_j*)``, ``g = 1 + W_g r(Y)`` (``dynamic``). The gain of its norm is one with ``W_r`` here. Of two
      parallel branches each has the ``g`` of what it computed. In training its code clips the weights of ``W_p`` and
      ``W_g`` to 120; nothing is clipped here.
    - The channels enter by learned maps of the embedding and leave by others, scaled to its magnitude; here they enter
      equal, and leave as ``readout`` says.
    - One AltUp goes around a block, which ends with a gated input of the layer's own for the channels that were not
      computed; here around each add, without that input.

    Attributes:
        n: channels, the paper's ``K``.
        choose: ``"alternating"`` computes channel ``k mod n`` at the ``k``-th add; ``"same"`` the first one at each, as
            Gemma 3n does.
        reads: what the branch starts from: ``"state"``, the channel as it is (paper), or ``"prediction"`` (Gemma 3n).
        dynamic: coefficients that depend on the token (Gemma 3n), ``n d + n^3 + n^2`` parameters; else static (paper).
        readout: how the channels leave: ``"mean"``, ``"sum"`` (paper), ``"learned"``; ``"auto"`` is the mean with
            ``start="preserve"`` and the sum with ``start="published"``.
        eps: of the router's norm.
    """

    name: ClassVar[str] = "altup"
    scope: ClassVar[str] = "wide"
    parameters: ClassVar[str] = "n^2 + n"
    crosses: ClassVar[str] = "n"
    saved: ClassVar[str] = "(n + 1) d"

    n: int = 2
    choose: Literal["alternating", "same"] = "alternating"
    reads: Literal["state", "prediction"] = "state"
    dynamic: bool = False
    readout: Literal["auto", "mean", "sum", "learned"] = "auto"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_wide(self, least=2)

    @classmethod
    def gemma3n(cls, **changes: Any) -> AltUp:
        """The form of Gemma 3n's code, as far as one add has it: four channels, the first always computed."""
        return cls(**{"n": 4, "choose": "same", "reads": "prediction", "dynamic": True, "readout": "mean", **changes})

    def build_stream(self, places: Sequence[Place]) -> WideStream:
        read = RoutedRead if self.dynamic else AltUpRead
        return WideStream(
            Expand(self.n), [None if p.parallel else read(self, p) for p in places],
            [RoutedWrite(self, p) if self.dynamic else HyperWrite(p.parallel) for p in places],
            Readout(self.n, readout_of(self), factory_of(places[-1])),
        )  # fmt: skip

    def computed(self, place: Place) -> int:
        """The channel that one add computes."""
        return place.depth % self.n if self.choose == "alternating" else 0

    def begin(self, state: Tensor, predict: Tensor, j: int) -> Tensor:
        """What the branch of the computed channel ``j`` starts from, ``(..., d)``."""
        if self.reads == "prediction":
            return combine(state, predict[..., j, :].unsqueeze(-1), 1.0)
        return state.select(-2, j).contiguous()

    def mixing(self, predict: Tensor, correct: Tensor, j: int) -> Tensor:
        """What ``X'`` has of ``X`` by ``P (..., n, n)`` and ``g (..., n)``: the same shape, row: to, column: from."""
        if self.reads == "prediction":
            return predict
        unit = torch.eye(self.n, dtype=predict.dtype, device=predict.device)[j]
        return predict + correct.unsqueeze(-1) * (unit - predict[..., j, :]).unsqueeze(-2)


class AltUpRead(Learned):
    """What the branch of one add starts from, by ``P (n, n)``, row: to, and ``g (n)``."""

    def __init__(self, config: AltUp, place: Place) -> None:
        super().__init__()
        self.config, self.computes = config, config.computed(place)
        self.eps = config.eps  # on the module: a compiler takes a float of the config for one that varies
        self.make(place.width, factory_of(place))
        self.reset_parameters()

    def make(self, width: int, factory: dict[str, Any]) -> None:
        """Parameters without values."""
        n = self.config.n
        self.predict, self.correct = empty(n, n, **factory), empty(n, **factory)

    def reset_parameters(self) -> None:
        set_values(self.predict, torch.eye(self.config.n))
        nn.init.ones_(self.correct)

    def prediction(self, state: Tensor) -> Tensor:
        """``P (..., n, n)``."""
        return in_type(self.predict, accumulator(state.dtype))

    def forward(self, state: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        predict, correct = self.prediction(state), in_type(self.correct, accumulator(state.dtype))
        matrix = self.config.mixing(predict, correct, self.computes)
        return self.config.begin(state, predict, self.computes), (correct, matrix.mT)

    def observe(self, state: Tensor) -> Observations:
        """``read``, the channels that the branch starts from; ``write``, ``g``; ``mixing``, from row to column;
        ``apart``: how far the channels differ."""
        _, (correct, matrix) = self(state)
        return observed_channels(state, self.seen(self.prediction(state)), correct, matrix)

    def seen(self, predict: Tensor) -> Tensor:
        """Weights ``(..., n)`` of the channels in what the branch starts from."""
        if self.config.reads == "prediction":
            return predict[..., self.computes, :]
        return torch.eye(self.config.n, dtype=predict.dtype, device=predict.device)[self.computes]

    def extra_repr(self) -> str:
        return f"channels={self.config.n}, computes={self.computes}"


class RoutedRead(AltUpRead):
    """The same by ``P = I + W_p r(X_j*)``; ``W_r (n, d)``, ``W_p (n, n, n)``, its last axis the router's, and ``W_g (n,
    n)`` go on to the write."""

    def make(self, width: int, factory: dict[str, Any]) -> None:
        n = self.config.n
        self.router, self.predict = empty(n, width, **factory), empty(n, n, n, **factory)
        self.correct = empty(n, n, **factory)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.router, std=ROUTER_STD)
        for behind in self.predict, self.correct:
            nn.init.normal_(behind, std=ROUTER_STD if self.config.start == "published" else 0.0)

    def prediction(self, state: Tensor) -> Tensor:
        seen = route(state.select(-2, self.computes), self.router, self.eps)
        eye = torch.eye(self.config.n, dtype=seen.dtype, device=seen.device)
        return eye + torch.einsum("...r,ijr->...ij", seen, in_type(self.predict, seen.dtype))

    def forward(self, state: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        predict = self.prediction(state)
        return self.config.begin(state, predict, self.computes), (predict, self.router, self.correct)

    def observe(self, state: Tensor) -> Observations:
        """``read``, the channels that the branch starts from; ``apart``: how far the channels differ."""
        return {"read": Observed(self.seen(self.prediction(state)), ("channel",)), "apart": Observed(apart(state))}


class RoutedWrite(nn.Module):
    """``X'`` with ``g = 1 + W_g r(x + f)``; of a second parallel branch ``X + g f``: both writes are one site."""

    def __init__(self, config: AltUp, place: Place) -> None:
        super().__init__()
        self.config, self.follows, self.eps = config, place.parallel, config.eps
        self.computes = config.computed(place)

    def coefficients(self, f: Tensor, x: Tensor, memo: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """``g (..., n)`` and what the new state has of the old, ``(..., n, n)``, row: to, column: from."""
        predict, router, correct = memo
        seen = route(x + f, router, self.eps)
        g = 1 + nn.functional.linear(seen, in_type(correct, seen.dtype))
        return g, self.config.mixing(predict, g, self.computes)

    def forward(self, state: Tensor, f: Tensor, x: Tensor, c: Tensor | None, memo: tuple[Tensor, ...]) -> Tensor:
        g, matrix = self.coefficients(f, x, memo)
        return mix(state, f, g, None if self.follows else matrix, unit=False)

    def observe(self, state: Tensor, f: Tensor, x: Tensor, c: Tensor | None, memo: tuple[Tensor, ...]) -> Observations:
        """``write``, ``g``; ``mixing``, from row to column."""
        g, matrix = self.coefficients(f, x, memo)
        return {"write": Observed(g, ("channel",)), "mixing": Observed(matrix.mT, ("from", "to"))}


def route(x: Tensor, router: Tensor, eps: float) -> Tensor:
    """``tanh(W_r N(x) / d)``: ``(..., d)`` to ``(..., n)``, in float32 for half types."""
    wide = accumulator(x.dtype)
    # The norm is a scale, so it can follow the projection: no normalised copy of the channel.
    seen = nn.functional.linear(in_type(x, router.dtype), router).to(wide) * inverse_deviation(x, eps, False)
    return torch.tanh(seen / x.shape[-1])
