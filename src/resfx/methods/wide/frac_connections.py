"""Frac-Connections (arXiv 2503.14125): Hyper-Connections between slices of the stream, which is not widened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import Learned, empty, set_values
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import wrong
from resfx.ops.channels.formula import inverse_deviation
from resfx.ops.register import accumulator, in_type

from .base import Expand, Readout, WideStream


@dataclass(frozen=True, kw_only=True)
class FracConnections(Method):
    """``H`` are ``m`` slices of ``d / m`` features: a branch reads ``A_m^T H`` and writes ``A_r^T H + diag(B) f``.

    ``A_m`` and ``A_r`` are ``(m, m)``, ``B (m,)``; the slices of what is read, put side by side, are what the branch
    starts from, and ``f`` is cut into slices as the state is. With ``dynamic`` the coefficients are those of
    Hyper-Connections, ``A + s_a tanh(N(H) W_a)`` and ``B + s_b tanh(N(H) W_b)`` with a layer norm of each slice
    without gain. The published start, ``A = I``, ``B = 1``, ``W = 0`` and ``s = 0.01``, is the host bit for bit.

    ``2 m^2 + m`` parameters per site, and ``(d / m) (2m + 1) + 2`` more where they are dynamic.

    Attributes:
        m: slices; they must divide the width.
        dynamic: coefficients that depend on the state.
        scale: where ``s`` starts.
        eps: of the norm.
    """

    name: ClassVar[str] = "frac_connections"
    scope: ClassVar[str] = "wide"
    parameters: ClassVar[str] = "2 m^2 + m + (d / m) (2 m + 1) + 2"
    saved: ClassVar[str] = "2 d + 6 m^2 + 5 m"

    m: int = 4
    dynamic: bool = True
    scale: float = 0.01
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m < 2:
            raise wrong(self, "m", "m must be at least 2 slices")
        if self.eps <= 0:
            raise wrong(self, "eps", "eps must be positive")

    def refuse(self, place: Place) -> str | None:
        return f"a width of {place.width} does not split into {self.m} slices" if place.width % self.m else None

    def build_stream(self, places: Sequence[Place]) -> WideStream:
        return WideStream(
            Expand(1), [None if p.parallel else FracRead(self, p) for p in places],
            [FracWrite(self.m, p.parallel) for p in places], Readout(1, "mean", factory_of(places[-1])),
        )  # fmt: skip


class FracRead(Learned):
    """The coefficients of one add and the branch's input."""

    def __init__(self, config: FracConnections, place: Place) -> None:
        super().__init__()
        m, factory = config.m, factory_of(place)
        self.config, self.eps = config, config.eps  # a number of a module is a constant of a compiled graph
        self.read, self.mix, self.write = empty(m, m, **factory), empty(m, m, **factory), empty(m, **factory)
        if config.dynamic:
            self.dynamic = empty(2 * m + 1, place.width // m, **factory)  # rows: m of the read, m of the mix, write
            self.scale = empty(2, **factory)  # of read and mix, of write
        self.reset_parameters()

    def reset_parameters(self) -> None:
        unit = torch.eye(self.config.m)
        set_values(self.read, unit)
        set_values(self.mix, unit)
        nn.init.ones_(self.write)
        if self.config.dynamic:
            nn.init.zeros_(self.dynamic)
            nn.init.constant_(self.scale, self.config.scale)

    def coefficients(self, slices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``A_m`` and ``A_r (..., m, m)``, row: from, column: to, and ``B (..., m)``."""
        wide, m = accumulator(slices.dtype), self.config.m
        read, mix, write = (in_type(p, wide) for p in (self.read, self.mix, self.write))
        if not self.config.dynamic:
            return read, mix, write
        weight = in_type(self.dynamic, wide)
        seen = in_type(nn.functional.linear(in_type(slices, self.dynamic.dtype), self.dynamic), wide)
        # The norm is linear but for its scale, so it can follow the projection.
        seen = seen - slices.mean(-1, keepdim=True, dtype=wide) * weight.sum(-1)
        seen = torch.tanh(seen * inverse_deviation(slices, self.eps, centre=True))
        both, own = in_type(self.scale, wide).unbind()
        return read + both * seen[..., :m], mix + both * seen[..., m : 2 * m], write + own * seen[..., -1]

    def forward(self, state: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        slices = state.squeeze(-2).unflatten(-1, (self.config.m, -1))
        read, mix, write = self.coefficients(slices)
        return across(slices, read).to(state.dtype).flatten(-2), (mix, write)

    def observe(self, state: Tensor) -> Observations:
        """``read``, ``A_m``, and ``mixing``, ``A_r``, of the slices; ``write``, ``B``."""
        read, mixing, write = self.coefficients(state.squeeze(-2).unflatten(-1, (self.config.m, -1)))
        return {"read": Observed(read, ("slice", "input")), "mixing": Observed(mixing, ("from", "to")),
                "write": Observed(write, ("slice",))}  # fmt: skip

    def extra_repr(self) -> str:
        return f"slices={self.config.m}, dynamic={self.config.dynamic}"


class FracWrite(nn.Module):
    """``A_r^T H + diag(B) f``; for the second of two parallel branches ``H + diag(B) f``: both are one site."""

    def __init__(self, m: int, follows: bool) -> None:
        super().__init__()
        self.m, self.follows = m, follows

    def forward(self, state: Tensor, f: Tensor, x: Tensor, c: Tensor | None, memo: tuple[Tensor, Tensor]) -> Tensor:
        mix, write = memo
        slices = state.squeeze(-2).unflatten(-1, (self.m, -1))
        base = in_type(slices, write.dtype) if self.follows else across(slices, mix)
        added = write.unsqueeze(-1) * in_type(f.unflatten(-1, (self.m, -1)), write.dtype)
        return (base + added).to(state.dtype).flatten(-2).unsqueeze(-2)


def across(slices: Tensor, weights: Tensor) -> Tensor:
    """``sum_j weights[..., j, i] slices[..., j, :]``, in the type of the weights. No product of matrices: that may run
    in a narrower type.

    Args:
        slices: ``(..., m, e)``.
        weights: ``(m, m)`` or ``(..., m, m)``.
    """
    weights, total = weights.unsqueeze(-1), None
    for row, piece in zip(weights.unbind(-3), slices.unbind(-2), strict=True):
        term = row * in_type(piece, weights.dtype).unsqueeze(-2)
        total = term if total is None else total + term
    assert total is not None
    return total
