"""Arguments for the operators with kernels as models have them: what is timed, and checked too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """What a model's calls look like: ``rows`` tokens of ``width``, ``matrices`` of Sinkhorn-Knopp."""

    rows: int
    width: int
    matrices: int
    sources: int = 8
    channels: int = 4
    heads: int = 16
    batch: int = 4
    window: int = 16


LARGE, SMALL = Sizes(4096, 2048, 2**17), Sizes(64, 2048, 64)
TINY = Sizes(6, 32, 6, sources=3, heads=2, batch=2, window=2)


def real(operator: str, sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    """The positional arguments of a call as a model makes it, on the default device.

    Args:
        operator: as :mod:`resfx.ops.choice` names it.
        dtype: of the stream; gates, weights of a token and matrices are in float32.
    """
    rows, d, n = sizes.rows, sizes.width, sizes.channels

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, dtype=torch.float32).to(kind)

    def numbers(*shape: int) -> Tensor:
        return draw(*shape, kind=torch.float32)

    if operator == "delta":
        gates = numbers(rows, 1).sigmoid(), numbers(rows, 1)
        return draw(rows, d), draw(rows, d), *gates, draw().sigmoid(), None, 1e-10, True
    if operator == "attention_read":
        query = (numbers(d) / d**0.5).to(dtype)  # scores of about one
        return [draw(rows, d) for _ in range(sizes.sources)], query, None, None, 1e-6, False
    if operator == "weighted_sum":
        return [draw(rows, d) for _ in range(sizes.sources)], draw(sizes.sources), None
    length, head = max(rows // sizes.batch, 4), d // sizes.heads
    if operator == "window":
        q, k, v = (draw(sizes.batch, sizes.heads, length, head) for _ in range(3))
        return q, k, v, None, sizes.window, True, False, head**-0.5
    if operator == "short_convolution":
        return draw(sizes.batch, length, d), draw(d, 4), None, None, False, 3, length
    if operator == "sinkhorn":
        return numbers(sizes.matrices, n, n), 20, 0
    state, f, write = draw(rows, n, d), draw(rows, d), numbers(rows, n)
    if operator == "channels.mix":
        return state, f, write, numbers(rows, n, n).softmax(-1), False
    if operator == "channels.delta":
        return state, f, numbers(rows, 1).sigmoid(), write, draw().sigmoid(), 1e-10, True, True
    return state, write.softmax(-1).unsqueeze(-1), None
