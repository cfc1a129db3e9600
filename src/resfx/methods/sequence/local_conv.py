"""A depthwise convolution over a few positions, as a mixer: what Canon layers and ShortConv insert."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import empty, set_values, uniform, zeros
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import wrong
from resfx.ops.short_convolution.formula import short_convolution
from resfx.ops.window.formula import reach

from .mixer import Mixer, State, last, readable

ACTIVATIONS = ("none", "silu")


@dataclass(frozen=True, kw_only=True)
class LocalConvMethod(Method):
    """What the methods that insert :class:`LocalConv` have in common; they differ in where, and in their defaults.

    Padding counts as zeros; texts packed into one row are not told apart.
    """

    scope: ClassVar[str] = "sequence"

    kernel: int = 4
    bias: bool = False
    activation: str = "none"
    residual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1:
            raise wrong(self, "kernel", "kernel must be at least 1 position")
        if self.activation not in ACTIVATIONS:
            raise wrong(self, "activation", f"activation must be one of {tuple(ACTIVATIONS)}")
        if self.start == "preserve" and not self.residual and self.activation != "none":
            raise wrong(self, "activation", f"{self.activation}(conv(x)) is not the identity for any weights",
                        "residual=True, activation='none' or start='published'")  # fmt: skip

    def build(self, place: Place) -> nn.Module:
        return LocalConv(
            place.width, self.kernel, bias=self.bias, activation=self.activation, residual=self.residual,
            causal=place.causal, identity=self.start == "preserve", factory=factory_of(place),
        )  # fmt: skip


class LocalConv(Mixer):
    """``x + act(sum_s w_s x_{t-s} + b)`` per channel, or without ``x +``. State ``(kernel - 1) width`` elements.

    Args:
        width: channels, heads and their features counted together.
        kernel: taps; causal hosts read ``t - kernel + 1 .. t``, others a centred window.
        identity: start as the identity instead of at random: zero weights, or one at the position itself where there
            is no residual.
    """

    def __init__(
        self, width: int, kernel: int, *, bias: bool, activation: str, residual: bool, causal: bool, identity: bool,
        factory: dict,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel, self.residual, self.activation = kernel, residual, activation
        self.reads = reach(kernel, causal)
        self.streams = int(causal and kernel > 1)
        self.identity = identity
        self.weight = empty(width, kernel, **factory)
        self.bias = empty(width, **factory) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        draw = zeros if self.identity else uniform(1 / math.sqrt(self.kernel))
        draw(self.weight)
        if self.bias is not None:
            draw(self.bias)
        if self.identity and not self.residual:
            start = torch.zeros(self.weight.shape)
            start[:, self.reads[0]] = 1
            set_values(self.weight, start)

    def forward(
        self, h: Tensor, mask: Tensor | None = None, state: State | None = None, keep: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        rows = self.to_rows(h)
        real = readable(rows, mask)
        x = (rows if real is None else rows * real.unsqueeze(-1)).to(self.weight.dtype)
        before = self.reads[0]
        if state is not None:
            x = torch.cat((state[0], x), 1)
        base = rows if self.residual and rows.dtype == x.dtype else None
        left, silu = before if state is None else 0, self.activation == "silu"
        mixed = short_convolution(x, self.weight, self.bias, base, silu, left, rows.shape[1]).to(rows.dtype)
        out = self.from_rows(rows + mixed if self.residual and base is None else mixed, h)
        return (out, (last(x, before, 1),)) if keep else out

    def observe(
        self, h: Tensor, mask: Tensor | None = None, state: State | None = None, keep: bool = False
    ) -> Observations:
        """``taps``: root of the mean square over channels of the weights, by distance ``s``."""
        return {"taps": Observed(self.weight.square().mean(0).sqrt().flip(0), ("distance",), -self.reads[1])}

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} channels, kernel {self.kernel}, activation {self.activation}"
