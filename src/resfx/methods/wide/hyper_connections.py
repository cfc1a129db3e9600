"""Hyper-Connections (arXiv 2409.19606): n copies of the stream with learned reads, writes and mixing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import Learned, empty, set_values
from resfx.methods.observe import Observations, Observed, apart
from resfx.methods.options import wrong
from resfx.ops.channels.formula import combine, inverse_deviation, mix
from resfx.ops.register import accumulator

from .base import Expand, Readout, WideStream

READOUTS = ("auto", "mean", "sum", "learned")


@dataclass(frozen=True, kw_only=True)
class HyperConnections(Method):
    """Each branch reads ``A_m^T H`` and the state becomes ``B^T f + A_r^T H`` (equations 2 to 5 of the paper).

    With ``dynamic`` the coefficients are ``B = s_b tanh(N(H) W_b) + B_0``, ``A = s_a tanh(N(H) W_a) + A_0`` with a
    norm ``N`` per channel (no gain: a product of gain and ``W`` would be one more name for ``W``). They start at
    the paper's values (equation 14): ``B = 1``, ``A_r = I``, ``A_m`` the unit vector of channel ``k mod n`` at the
    ``k``-th add, ``W = 0``, ``s = 0.01``. This start leaves the model as it is for any ``n``, bit for bit, if the
    channels leave as their mean. The paper's sum relies on a final norm, and its rescaling of output projections
    by ``sqrt(n)`` is for training from scratch: neither is done to a pretrained model.

    Attributes:
        n: channels.
        dynamic: coefficients that depend on the state; else static ones, ``n (n + 2)`` numbers per add.
        tanh: bound the dynamic part.
        norm: ``"layer"`` (paper) or ``"rms"``.
        scale: where ``s`` starts.
        readout: how the channels leave: ``"mean"``, ``"sum"`` (paper), ``"learned"``; ``"auto"`` is the mean with
            ``start="preserve"`` and the sum with ``start="published"``.
        eps: of the norm.
    """

    name: ClassVar[str] = "hyper_connections"
    scope: ClassVar[str] = "wide"
    parameters: ClassVar[str] = "(d + n) (n + 2) + 2"
    crosses: ClassVar[str] = "n"
    saved: ClassVar[str] = "(n + 1) d + 3 n^2 + 8 n"

    n: int = 4
    dynamic: bool = True
    tanh: bool = True
    norm: Literal["layer", "rms"] = "layer"
    scale: float = 0.01
    readout: Literal["auto", "mean", "sum", "learned"] = "auto"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_wide(self, least=1)
        if self.norm not in ("layer", "rms"):
            raise wrong(self, "norm", "norm must be 'layer' or 'rms'")

    def build_stream(self, places: Sequence[Place]) -> WideStream:
        return WideStream(
            Expand(self.n),
            [None if p.parallel else HyperRead(self, p) for p in places],
            [HyperWrite(p.parallel) for p in places],
            Readout(self.n, readout_of(self), factory_of(places[-1])),
        )


def check_wide(config: Any, least: int) -> None:
    """What every config with channels and a readout must satisfy."""
    if not isinstance(config.n, int) or config.n < least:
        raise wrong(config, "n", f"n must be an integer of at least {least}")
    if config.readout not in READOUTS:
        raise wrong(config, "readout", f"readout must be one of {READOUTS}")
    if config.readout == "sum" and config.start == "preserve" and config.n > 1:
        raise wrong(
            config, "readout",
            "readout='sum' multiplies what leaves the stream by n, so it cannot keep the model's function",
            "readout='mean', or start='published'",
        )  # fmt: skip
    if getattr(config, "eps", 1) <= 0:
        raise wrong(config, "eps", "eps must be positive")


def readout_of(config: Any) -> str:
    """The readout that ``"auto"`` stands for."""
    if config.readout != "auto":
        return config.readout
    return "mean" if config.start == "preserve" else "sum"


def observed_channels(state: Tensor, read: Tensor, write: Tensor, mixing: Tensor) -> Observations:
    """What there is to see of a state ``(..., n, d)`` and one add's coefficients ``(..., n)`` and ``(..., n, n)``, row:
    from, column: to."""
    return {
        "read": Observed(read, ("channel",)), "write": Observed(write, ("channel",)),
        "mixing": Observed(mixing, ("from", "to")), "apart": Observed(apart(state)),
    }  # fmt: skip


class HyperRead(Learned):
    """The coefficients of one add and the branch's input.

    Parameters: ``n (n + 2)``, and ``d (n + 2) + 2`` more where they are dynamic.
    """

    def __init__(self, config: HyperConnections, place: Place) -> None:
        super().__init__()
        n, d, factory = config.n, place.width, factory_of(place)
        self.config, self.eps = config, config.eps
        self.leads = place.depth % n
        self.read, self.write, self.mix = empty(n, **factory), empty(n, **factory), empty(n, n, **factory)
        if config.dynamic:
            self.dynamic = empty(n + 2, d, **factory)  # rows: read, write, n of the mix
            self.scale = empty(2, **factory)  # of read and mix, of write
        self.reset_parameters()

    def reset_parameters(self) -> None:
        unit = torch.eye(self.config.n)
        set_values(self.read, unit[self.leads])
        set_values(self.mix, unit)
        nn.init.ones_(self.write)
        if self.config.dynamic:
            nn.init.zeros_(self.dynamic)
            nn.init.constant_(self.scale, self.config.scale)

    def coefficients(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``A_m (..., n)``, ``B (..., n)`` and ``A_r (..., n, n)``, row: from, column: to."""
        wide = accumulator(state.dtype)
        read, write, mix = self.read.to(wide), self.write.to(wide), self.mix.to(wide)
        if not self.config.dynamic:
            return read, write, mix
        weight, layer = self.dynamic.to(wide), self.config.norm == "layer"
        seen = nn.functional.linear(state.to(self.dynamic.dtype), self.dynamic).to(wide)
        # The norm is linear but for its scale, so it can follow the projection: no normalised copy of the state.
        if layer:
            seen = seen - state.mean(-1, keepdim=True, dtype=wide) * weight.sum(-1)
        seen = seen * inverse_deviation(state, self.eps, layer)
        if self.config.tanh:
            seen = torch.tanh(seen)
        scale = self.scale.to(wide)
        seen = seen * torch.cat([scale[:1], scale[1:], scale[:1].expand(self.config.n)])
        return read + seen[..., 0], write + seen[..., 1], mix + seen[..., 2:]

    def forward(self, state: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        read, write, matrix = self.coefficients(state)
        return combine(state, read.unsqueeze(-1), 1.0), (write, matrix)

    def observe(self, state: Tensor) -> Observations:
        """``read``, ``A_m``; ``write``, ``B``; ``mixing``, ``A_r``; ``apart``: how far the channels differ."""
        return observed_channels(state, *self.coefficients(state))

    def extra_repr(self) -> str:
        return f"channels={self.config.n}, dynamic={self.config.dynamic}"


class HyperWrite(nn.Module):
    """``B^T f + A_r^T H``; for the second of two parallel branches ``B^T f + H``: both writes are one site."""

    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.follows = follows

    def forward(self, state: Tensor, f: Tensor, x: Tensor, c: Tensor | None, memo: tuple[Tensor, Tensor]) -> Tensor:
        write, matrix = memo
        return mix(state, f, write, None if self.follows else matrix.transpose(-1, -2), unit=False)
