"""A depthwise convolution over a few positions, as a mixer: the operator of Canon layers and ShortConv."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from resfx.methods.base import Method, Place
from resfx.ops.register import fused, keeps_one_node, one_node, stored
from resfx.ops.window.formula import reach

from .mixer import Mixer, State, last, readable

ACTIVATIONS = ("none", "silu")


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None, silu: bool, left: int, size: int
) -> Tensor:
    """``base + act(sum_s weight[:, s] x[:, t - left + s] + bias)`` at the positions ``t < size``.

    Args:
        x: the positions read, ``(batch, S, d)``; zeros beyond its ends.
        weight: ``(d, k)``.
        bias: ``(d,)``.
        base: ``(batch, size, d)``, nothing by default.
        silu: whether ``act`` is SiLU; else it does nothing.
        left: how many positions before its own the first tap reads.
        size: positions of the result.
    """
    if keeps_one_node():
        return _node(_padded(x, weight, left, size), weight, bias, base, silu)
    return _operator(x, weight, bias, base, silu, left, size)


def short_convolution_formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None, silu: bool, left: int, size: int
) -> Tensor:
    """:func:`short_convolution` step by step."""
    return _convolution(_padded(x, weight, left, size), weight, bias, base, silu)


def _padded(x: Tensor, weight: Tensor, left: int, size: int) -> Tensor:
    """All positions that are read, ``(batch, size + k - 1, d)``."""
    return nn.functional.pad(x, (0, 0, left, size + weight.shape[1] - 1 - left - x.shape[1]))


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None, silu: bool) -> Tensor:
    taps = stored(weight.t()).unbind(0)  # a tap with gaps between its features would keep loops from being vectorised
    size = x.shape[1] - len(taps) + 1
    mixed = x.narrow(1, 0, size) * taps[0]
    for s in range(1, len(taps)):
        mixed = torch.addcmul(mixed, x.narrow(1, s, size), taps[s])
    if bias is not None:
        mixed = mixed + bias
    if silu:
        mixed = nn.functional.silu(mixed)
    return mixed if base is None else base + mixed


_operator = fused("short_convolution", short_convolution_formula)
_node = one_node(
    "short_convolution_node",
    _convolution,
    lambda x, weight, *_: x.new_empty(x.shape[0], x.shape[1] - weight.shape[1] + 1, x.shape[2]),
)


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
            raise ValueError(f"kernel must be at least 1 position, not {self.kernel}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, not {self.activation!r}")
        if self.start == "preserve" and not self.residual and self.activation != "none":
            raise ValueError(
                f"{self.activation}(conv(x)) is not the identity for any weights: "
                "residual=True, activation='none' or start='published'"
            )

    def build(self, place: Place) -> nn.Module:
        return LocalConv(
            place.width, self.kernel, bias=self.bias, activation=self.activation, residual=self.residual,
            causal=place.causal, identity=self.start == "preserve",
            factory={"device": place.device, "dtype": place.dtype},
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
        self.weight = nn.Parameter(torch.zeros(width, kernel, **factory))
        self.bias = nn.Parameter(torch.zeros(width, **factory)) if bias else None
        if not identity:
            bound = 1 / math.sqrt(kernel)
            nn.init.uniform_(self.weight, -bound, bound)
            if self.bias is not None:
                nn.init.uniform_(self.bias, -bound, bound)
        elif not residual:
            with torch.no_grad():
                self.weight[:, self.reads[0]] = 1

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

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} channels, kernel {self.kernel}, activation {self.activation}"
