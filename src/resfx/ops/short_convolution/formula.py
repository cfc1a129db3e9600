"""A depthwise convolution over a few positions, with what comes behind it: bias, activation, and a sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resfx.ops.inductor import stored
from resfx.ops.register import at_kernels, fused, keeps_one_node, one_node


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
    if at_kernels(x):  # they pad as they read
        return _operator(x, weight, bias, base, silu, left, size)
    padded = _padded(x, weight, left, size)
    done = _node.native(padded, weight, bias, base, silu)
    return _convolution(padded, weight, bias, base, silu) if done is None else done


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
