"""A depthwise convolution over a few positions, as a mixer: the operator of Canon layers and ShortConv."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ._operators import fused
from ._streaming import Mixer, State, last, readable
from .window import reach

ACTIVATIONS = {"none": lambda x: x, "silu": nn.functional.silu}


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
        left, shortcut = before if state is None else 0, rows if self.residual else None
        mixed = _local_conv(x, self.weight, self.bias, shortcut, self.activation, left, rows.shape[1])
        out = self.from_rows(mixed.to(rows.dtype), h)
        return (out, (last(x, before, 1),)) if keep else out

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} channels, kernel {self.kernel}, activation {self.activation}"


def local_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, activation: str, left: int, size: int
) -> Tensor:
    """``shortcut + act(sum_s weight_s x[t - left + s] + bias)`` at the positions ``t < size``; zeros beyond the ends.

    Args:
        x: ``(batch, S, width)``.
        weight: taps, ``(width, kernel)``.
        bias: ``(width,)``.
        shortcut: ``(batch, size, width)``.
        activation: a name of :data:`ACTIVATIONS`.
        left: how many positions before its own the first tap reads.
        size: positions of the result.

    Returns:
        ``(batch, size, width)`` in the type of the shortcut, or of ``x``.
    """
    after = size + weight.shape[1] - 1 - left - x.shape[1]
    padded, taps = nn.functional.pad(x, (0, 0, left, after)), weight.unbind(1)
    mixed = padded.narrow(1, 0, size) * taps[0]
    for s in range(1, len(taps)):
        mixed = torch.addcmul(mixed, padded.narrow(1, s, size), taps[s])
    if bias is not None:
        mixed = mixed + bias
    mixed = ACTIVATIONS[activation](mixed)
    return mixed.to(x.dtype) if shortcut is None else shortcut + mixed.to(shortcut.dtype)


_local_conv = fused("local_conv", local_conv)
