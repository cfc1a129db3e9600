"""Alternating Updates (AltUp, arXiv 2301.13310): one channel is computed, all others are predicted and corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import Learned, empty, set_values
from resfx.methods.observe import Observations
from resfx.ops.register import accumulator, in_type

from .base import Expand, Readout, WideStream
from .hyper_connections import HyperWrite, check_wide, observed_channels, readout_of


@dataclass(frozen=True, kw_only=True)
class AltUp(Method):
    """Predict ``X^_i = sum_j p_ij X_j``, compute ``Y = L(X_j*)``, correct ``X'_i = X^_i + g_i (Y - X^_j*)``.

    This is the paper's algorithm 1 with a sublayer and its shortcut as the layer, ``Y = X_j* + f(X_j*)``; the paper's
    layers are blocks. So ``X' = (P + g (e_j* - P_j*)^T) X + g f``: Hyper-Connections with tied coefficients, and each
    branch reads one channel as it is. ``P = I`` and ``g = 1`` is the host bit for bit, if the channels leave as their
    mean; they part because each is computed at other adds.

    All channels enter equal; ``start="published"`` sums them at the end (Recycled-AltUp, section 4.1, which needs no
    wider embedding). ``n^2 + n`` parameters per site.

    Attributes:
        n: channels, the paper's ``K``.
        choose: ``"alternating"`` computes channel ``k mod n`` at the ``k``-th add; ``"same"`` the first one at each, as
            Gemma 3n does.
        readout: how the channels leave: ``"mean"``, ``"sum"`` (paper), ``"learned"``; ``"auto"`` is the mean with
            ``start="preserve"`` and the sum with ``start="published"``.
    """

    name: ClassVar[str] = "altup"
    scope: ClassVar[str] = "wide"
    parameters: ClassVar[str] = "n^2 + n"
    crosses: ClassVar[str] = "n"

    n: int = 2
    choose: Literal["alternating", "same"] = "alternating"
    readout: Literal["auto", "mean", "sum", "learned"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_wide(self, least=2)

    def build_stream(self, places: Sequence[Place]) -> WideStream:
        return WideStream(
            Expand(self.n), [None if p.parallel else AltUpRead(self, p) for p in places],
            [HyperWrite(p.parallel) for p in places], Readout(self.n, readout_of(self), factory_of(places[-1])),
        )  # fmt: skip


class AltUpRead(Learned):
    """The channel that one add computes, ``P (n, n)``, row: to, and ``g (n)``."""

    def __init__(self, config: AltUp, place: Place) -> None:
        super().__init__()
        self.computes = place.depth % config.n if config.choose == "alternating" else 0
        self.predict, self.correct = (
            empty(config.n, config.n, **factory_of(place)),
            empty(config.n, **factory_of(place)),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        set_values(self.predict, torch.eye(len(self.correct)))
        nn.init.ones_(self.correct)

    def coefficients(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``g (n)`` and ``P + g (e_j* - P_j*)^T (n, n)``, here row: from, column: to."""
        predict, correct = in_type(self.predict, dtype), in_type(self.correct, dtype)
        unit = torch.eye(len(correct), dtype=dtype, device=correct.device)[self.computes]
        return correct, (predict + correct.unsqueeze(-1) * (unit - predict[self.computes])).mT

    def forward(self, state: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return state.select(-2, self.computes).contiguous(), self.coefficients(accumulator(state.dtype))

    def observe(self, state: Tensor) -> Observations:
        """``read``, the channel computed; ``write``, ``g``; ``mixing``, from row to column; ``apart``: how far the
        channels differ."""
        correct, matrix = self.coefficients(accumulator(state.dtype))
        read = torch.eye(len(correct), dtype=correct.dtype, device=correct.device)[self.computes]
        return observed_channels(state, read, correct, matrix)

    def extra_repr(self) -> str:
        return f"channels={len(self.correct)}, computes={self.computes}"
