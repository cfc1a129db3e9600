"""A depthwise convolution over a few positions, as a mixer: the operator of Canon layers and ShortConv."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
        before, after = self.reads
        if state is None:
            x = nn.functional.pad(x, (0, 0, before, after))
        else:
            x = torch.cat((state[0], x), 1)
        size = rows.shape[1]
        taps = self.weight.unbind(1)
        mixed = x.narrow(1, 0, size) * taps[0]
        for s in range(1, self.kernel):
            mixed = torch.addcmul(mixed, x.narrow(1, s, size), taps[s])
        if self.bias is not None:
            mixed = mixed + self.bias
        mixed = ACTIVATIONS[self.activation](mixed).to(rows.dtype)
        out = self.from_rows(rows + mixed if self.residual else mixed, h)
        return (out, (last(x, before, 1),)) if keep else out

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} channels, kernel {self.kernel}, activation {self.activation}"
