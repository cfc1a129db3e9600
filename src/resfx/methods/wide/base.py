"""What the methods with a widened stream share: its shape, entry, read-outs and mixing.

The wide state is one tensor ``(..., n, d)``: channel ``j`` is ``state[..., j, :]``. Every operation is written so
that equal channels stay equal *exactly*: a mean is one channel plus the mean of differences from it, and a mix
whose weights sum to one is one channel plus weighted differences. All run elementwise in float32 for half types,
so that neither autocast nor reduced-precision matrix products touch the stream. See :mod:`resfx.ops.channels.formula`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resfx.methods.learned import Learned, empty
from resfx.ops.channels.formula import combine, spread, total
from resfx.ops.register import accumulator


@dataclass
class WideStream:
    """The modules of one wide stream.

    Attributes:
        expand: ``forward(x (..., d))`` gives the state ``(..., n, d)`` that enters.
        reads: per site, ``forward(state)`` gives ``(x, memo)``: what the branch starts from, ``(..., d)``, and
            whatever the write wants to know of the state. ``None`` shares the read module of the site before.
        writes: per site, ``forward(state, f, x, c, memo)`` gives the new state from the branch output ``f``, the
            branch's input ``x`` and its normalised context ``c`` or ``None``.
        collapse: ``forward(state)`` gives ``(..., d)``: what leaves, and what any other reader on the way gets.

    An ``expand`` that reads earlier tokens is a :class:`resfx.methods.sequence.mixer.Mixer`. A read or ``collapse``
    that does has a method ``over_tokens()``: it makes a mixer without parameters that follows each call, and keeps its
    state (``None``: not this one).
    """

    expand: nn.Module
    reads: list[nn.Module | None]
    writes: list[nn.Module]
    collapse: nn.Module


class Expand(nn.Module):
    """``n`` equal channels: a view. Compiled it is a copy: every block then gets a state with the same strides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        state = spread(x, self.channels)
        return state.contiguous() if torch.compiler.is_dynamo_compiling() else state

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class Readout(Learned):
    """From ``n`` channels to one: ``"mean"``, ``"sum"``, or ``"learned"`` weights that start at the mean."""

    def __init__(self, channels: int, kind: str, factory: dict[str, Any]) -> None:
        super().__init__()
        self.channels, self.kind = channels, kind
        # Kept as the distance from the mean: exactly zero at the start, whatever the number of channels.
        self.weight = empty(channels, **factory) if kind == "learned" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.zeros_(self.weight)

    def forward(self, state: Tensor) -> Tensor:
        wide = accumulator(state.dtype)
        if self.kind == "sum":
            return total(state.to(wide).unbind(-2)).to(state.dtype)
        mean = torch.full((self.channels, 1), 1 / self.channels, dtype=wide, device=state.device)
        weights = mean if self.weight is None else mean + self.weight.to(wide).unsqueeze(-1)
        return combine(state, weights, total(mean.unbind(-2)))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, {self.kind}"
