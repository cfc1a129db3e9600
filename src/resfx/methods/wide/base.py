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
    """The modules of one wide stream over consecutive places: what ``build_stream(places)`` of a method makes.

    Between entry and exit the stream is a state ``(..., n, d)`` with ``n`` channels in the place of one vector; what
    the host does to its state between two adds (a norm behind the add, a scale) is done to every channel. The modules
    are called in this order, with tensors in the host's types, and may be of any class::

        state = expand(x)                        # x (..., d): the state before the first add
        for each add:
            x, memo = read(state)                # the branch of the host starts from x, and gives f
            state = write(state, f, x, c, memo)  # c: x behind the branch's opening norm
        y = collapse(state)                      # y (..., d): what the host reads behind the last add

    Attributes:
        expand: ``forward(x (..., d))`` gives the state ``(..., n, d)`` that enters. Its attribute ``channels``, an
            integer, is ``n``. :class:`Expand` makes equal channels.
        reads: per place, ``forward(state)`` gives ``(x, memo)``: what the branch starts from, ``(..., d)``, and
            whatever the write wants to know of the state: tensors, ``None``, or tuples of them. ``None`` in the place
            of a module shares the read of the place before; so it must be where ``place.parallel`` is true, since
            both branches start from one state there, one ``x`` and one ``memo``. The first place has a read.
        writes: per place, ``forward(state, f, x, c, memo)`` gives the new state ``(..., n, d)`` from the branch output
            ``f (..., d)``, the branch's input ``x`` and its normalised context ``c (..., d_c)`` or ``None``.
        collapse: ``forward(state)`` gives ``(..., d)``: what leaves, and what any other reader on the way gets (hidden
            states handed out, cross-attention). :class:`Readout` is a mean, a sum or learned.

    With ``start="preserve"`` the whole must compute what the host does, bit for bit, until the new parameters learn. It
    does if all channels are equal at the start and stay so: ``read`` and ``collapse`` give that channel exactly, and
    ``write`` adds ``f`` to each. The operators of :mod:`resfx.ops.channels.formula` keep equal channels equal exactly;
    a plain mean of three does not. The rewrite is checked for that, and every parameter must get a gradient at the
    start or after one step: so channels must be able to part (by writes or reads that differ), and a first read that
    averages equal channels has no weights of its own. Parameters are never scalars, and a module that owns some gives
    them their start in ``reset_parameters()`` (see :class:`resfx.methods.learned.Learned`).

    An ``expand`` that reads earlier tokens is a :class:`resfx.methods.sequence.mixer.Mixer`. A read or ``collapse``
    that does has a method ``over_tokens()``: it makes a mixer without parameters that follows each call, and keeps its
    state (``None``: not this one).

    Raises:
        ValueError: if the parts do not belong together.
    """

    expand: nn.Module
    reads: list[nn.Module | None]
    writes: list[nn.Module]
    collapse: nn.Module

    def __post_init__(self) -> None:
        channels = getattr(self.expand, "channels", None)
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"expand must have its number of channels as an attribute `channels`, not {channels!r}")
        if len(self.reads) != len(self.writes) or not self.reads:
            raise ValueError(f"each place must have a write and a read or None, not {len(self.writes)} writes and"
                             f" {len(self.reads)} reads")  # fmt: skip
        if self.reads[0] is None:
            raise ValueError("the first place must have a read: there is none before it to share")


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
