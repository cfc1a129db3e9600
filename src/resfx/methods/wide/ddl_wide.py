"""Deep Delta Learning with a matrix state ``(d, d_v)`` (arXiv 2601.00417, section 4 and appendix A.2).

At every add: compress the state to one vector, run the branch on it, and write back to each of the ``d_v`` value
channels with one gate and one direction but a target of its own. The state is kept as ``(..., d_v, d)``. ``config`` is
a :class:`resfx.methods.site.ddl.DDL` everywhere here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.delta_site import DeltaSite
from resfx.methods.learned import Learned, empty, normal, set_values
from resfx.methods.observe import Observations, Observed, apart
from resfx.methods.sequence.mixer import Mixer, State, last, readable
from resfx.ops.channels.formula import combine, delta_write, spread, total
from resfx.ops.register import accumulator

from .base import Expand, WideStream


def build_stream(config: Any, places: Sequence[Place]) -> WideStream:
    """See :meth:`resfx.methods.base.Method.build_stream`."""
    reads: list[nn.Module | None] = []
    block = None
    for place in places:
        shared = place.parallel or (config.share_compressor == "block" and place.block == block)
        reads.append(None if shared else Reader(config, place))
        block = place.block
    entry = EmbedConv(config, places[0]) if config.embed_conv else Expand(config.value_channels)
    return WideStream(entry, reads, [DeltaWrite(config, p) for p in places], compressor(config, places[-1]))


def compressor(config: Any, place: Place) -> nn.Module:
    """From the state to one vector: over value channels, or over channels and the last tokens."""
    return (ChannelCompressor if config.compress == "channel" else TokenCompressor)(config, place)


class Reader(nn.Module):
    """A compressor as a read; the writes need nothing else from the state."""

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__()
        self.compress = compressor(config, place)

    def over_tokens(self) -> TokenSum | None:
        """The module that must follow each call, if any."""
        return self.compress.over_tokens() if isinstance(self.compress, TokenCompressor) else None

    def forward(self, state: Tensor) -> tuple[Tensor | tuple[Tensor, ...], None]:
        return self.compress(state), None

    def observe(self, state: Tensor) -> Observations:
        """``apart``: how far the value channels differ; ``read``: what each counts for, averaged over features."""
        found = {"apart": Observed(apart(state))}
        if isinstance(self.compress, ChannelCompressor):
            weights = torch.stack(self.compress.weights(accumulator(state.dtype)))
            found["read"] = Observed(weights.mean(-1), ("channel",))
        return found


class ChannelCompressor(Learned):
    """A convolution over the value axis and a read vector. Parameters: ``d d_v + d_v``.

    ``forward(state (..., d_v, d))`` gives ``(..., d)``. Kernel ``W (d, d_v)``, padded to keep the length, and read
    ``r (d_v)`` make one weighting of the channels (see :meth:`weights`).

    With ``start="preserve"`` the kernel is its centre tap and the read an average; published kernels are random.
    """

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__()
        n, factory = config.value_channels, factory_of(place)
        self.config = config
        self.kernel, self.read = empty(place.width, n, **factory), empty(n, **factory)
        self.centre = (n - 1) // 2
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _start_kernel(self.config, self.kernel, self.centre, self.kernel.shape[0])
        nn.init.constant_(self.read, 1 / len(self.read))

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        """Per channel ``v`` its weights ``(d,)``: ``sum_k r_k W[:, v - k + centre]``."""
        kernel, read = self.kernel.to(dtype).unbind(-1), self.read.to(dtype).unbind(0)
        n, out = len(read), []
        for v in range(n):
            taps = [(read[k], kernel[v - k + self.centre]) for k in range(n) if 0 <= v - k + self.centre < n]
            out.append(total([r * w for r, w in taps]))
        return out

    def forward(self, state: Tensor) -> Tensor:
        weights = torch.stack(self.weights(accumulator(state.dtype)))
        return combine(state, weights, _unit(self.config, self.read, weights.dtype))


class TokenCompressor(Learned):
    """A causal convolution over tokens for every feature of every channel, and a read vector.

    Parameters: ``k d d_v + d_v``. ``forward(state (batch, tokens, d_v, d))`` gives, for each of ``k`` taps, what a
    token adds ``b`` tokens later, ``(batch, tokens, d)``: channels are summed before tokens are shifted, so that what
    is shifted, and kept between calls, has one channel. :class:`TokenSum` adds them up.
    """

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__()
        n, factory = config.value_channels, factory_of(place)
        self.config = config
        self.kernel, self.read = empty(n, place.width, config.token_kernel, **factory), empty(n, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _start_kernel(self.config, self.kernel, -1, self.kernel.shape[1])
        nn.init.constant_(self.read, 1 / len(self.read))

    def over_tokens(self) -> TokenSum:
        """The module that must follow each call."""
        return TokenSum()

    def forward(self, state: Tensor) -> tuple[Tensor, ...]:
        dtype = accumulator(state.dtype)
        read, kernel = self.read.to(dtype).unsqueeze(-1), self.kernel.to(dtype)
        *past, now = [read * tap for tap in kernel.unbind(-1)]
        parts = [combine(state, now, _unit(self.config, self.read, dtype))]
        return (*parts, *(combine(state, weights, None) for weights in reversed(past)))


class TokenSum(Mixer):
    """``sum_b y_b[t - b]`` over the parts ``y_b (batch, tokens, d)`` of a convolution over tokens. No parameters.

    State: what past tokens add to the next ``k - 1``, ``(batch, k - 1, d)``.
    """

    streams = 1

    def forward(  # type: ignore[override]
        self, h: Sequence[Tensor], mask: Tensor | None = None, state: State | None = None, keep: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        size, reach = h[0].shape[1], len(h) - 1
        real = readable(h[0], mask)
        total = None
        for back, part in enumerate(h):
            wide = part.to(accumulator(part.dtype))
            if back and real is not None:  # a padding token says nothing to later ones
                wide = wide * real.unsqueeze(-1)
            wide = nn.functional.pad(wide, (0, 0, back, reach - back))
            total = wide if total is None else total + wide
        assert total is not None
        if state is not None:
            total = total + nn.functional.pad(state[0], (0, 0, 0, size))
        out = total.narrow(1, 0, size).to(h[0].dtype)
        return (out, (total.narrow(1, size, reach).clone(),)) if keep else out


class EmbedConv(Mixer):
    """The entry with a causal convolution over tokens. Parameters: ``k d d_v``; starts as equal channels.

    ``forward(x (batch, tokens, d))`` gives ``(batch, tokens, d_v, d)``. State: the last ``k - 1`` of ``x``.
    """

    streams = 1

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__()
        self.channels = config.value_channels
        self.kernel = empty(self.channels, place.width, config.token_kernel, **factory_of(place))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        set_values(self.kernel, _one_tap(self.kernel, -1))

    def forward(
        self, h: Tensor, mask: Tensor | None = None, state: State | None = None, keep: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        taps = self.kernel.to(accumulator(h.dtype)).unbind(-1)
        size, reach, real = h.shape[1], len(taps) - 1, readable(h, mask)
        x = h if real is None else h * real.unsqueeze(-1)
        x = nn.functional.pad(x, (0, 0, reach, 0)) if state is None else torch.cat((state[0], x), 1)
        wide = x.to(taps[0].dtype)
        out = taps[-1] * spread(h.to(wide.dtype), self.channels)
        for start, tap in enumerate(taps[:-1]):
            out = torch.addcmul(out, tap, wide.narrow(1, start, size).unsqueeze(-2))
        out = out.to(h.dtype)
        return (out, (last(x, reach, 1),)) if keep else out


class DeltaWrite(DeltaSite):
    """``X' = X + beta k (v^T - k^T X)``: one gate and direction, a target per channel.

    With ``write_only`` the erased part ``k^T X`` is left out: same state, compressors and branches.
    """

    def __init__(self, config: Any, place: Place) -> None:
        super().__init__(config, place, values=config.value_channels)

    def forward(self, state: Tensor, f: Tensor, x: Tensor, c: Tensor | None, memo: None) -> Tensor:  # type: ignore[override]
        beta, v = self.gates(x, f, c)
        config = self.config
        return delta_write(state, f, beta, v, self.mix, self.eps2, config.start == "preserve", not config.write_only)

    def observe(self, state: Tensor, f: Tensor, x: Tensor, c: Tensor | None, memo: None) -> Observations:  # type: ignore[override]
        found = self.along(state, x, f, c)
        if self.config.write_only:
            del found["erased"]
        return found


def _start_kernel(config: Any, kernel: Tensor, tap: int, width: int) -> None:
    if config.start == "preserve":
        set_values(kernel, _one_tap(kernel, tap))
    else:
        normal(0.5 / math.sqrt(width))(kernel)


def _one_tap(kernel: Tensor, tap: int) -> Tensor:
    start = torch.zeros(kernel.shape)
    start[..., tap] = 1
    return start


def _unit(config: Any, read: Tensor, dtype: torch.dtype) -> Tensor | float:
    """What the weights of the channels sum to at a preserving start: one, but for rounding."""
    if config.start != "preserve":
        return 1.0
    return total(torch.full_like(read, 1 / len(read)).to(dtype).unbind(0)).detach()
