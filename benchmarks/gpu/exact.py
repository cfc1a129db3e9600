"""What must hold bit for bit on any card: a rewritten model starts as the model it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from resfx.ops.attention_read.formula import attention_read
from resfx.ops.channels import formula as channels
from resfx.ops.window.formula import windowed_attention

from .against import draw

Pairs = Iterator[tuple[Any, Tensor]]


def closed_mix(dtype: torch.dtype) -> Pairs:
    """A closed mix is the plain add, whatever the layout, and so are its gradients; the mix's own is not zero."""
    from resfx.ops.delta import triton as kernels

    # Whole numbers: the interpreter cuts off where a GPU rounds to bfloat16, so sums must need neither.
    x, f, grad = (torch.randint(-60, 60, (24, 5)).to(dtype).T for _ in range(3))
    b, v, m = torch.rand(5, 1), torch.randn(1, 1).expand(5, 1), torch.zeros((), dtype=dtype)
    yield kernels.forward(x, f, b, v, m, None, 1e-10, True), x + f
    gx, gf, gb, gv, gm, *_ = kernels.gradients(grad, x, f, b, v, m, None, 1e-10, True)
    yield from ((gx, grad), (gf, grad), (gb, torch.zeros_like(b)), (gv, torch.zeros_like(v)))
    yield gm != 0, torch.ones_like(m, dtype=torch.bool)


def zero_query(dtype: torch.dtype) -> Pairs:
    """A relative read whose query is zero is its base, for every number of sources."""
    for count in (2, 3, 7, 41):
        sources, base = [draw(4, 9, dtype=dtype) for _ in range(count)], draw(4, 9, dtype=dtype)
        yield attention_read(sources, torch.zeros(9, dtype=dtype), base, eps=1e-6, relative=True), base


def equal_channels(dtype: torch.dtype) -> Pairs:
    """Equal channels stay equal, combined and mixed."""
    x, f = draw(3, 9, dtype=dtype), torch.zeros(3, 9, dtype=dtype)
    state = x.unsqueeze(-2).expand(3, 5, 9)
    weights, matrix = torch.rand(3, 5, 1).softmax(-2), torch.rand(3, 5, 5).softmax(-1)
    yield channels.combine(state, weights, channels.total(weights.unbind(-2))), x
    yield channels.mix(state, f, torch.rand(3, 5), matrix, True), state


def window_of_one(dtype: torch.dtype) -> Pairs:
    """A window of one position reads that position."""
    q, k, v = (draw(2, 3, 2, 6, 4, dtype=dtype) for _ in range(3))
    yield windowed_attention(q, k, v, 1), v


EXACT: dict[str, Callable[[torch.dtype], Pairs]] = {
    "a closed mix is the plain add": closed_mix,
    "a read with a zero query is its base": zero_query,
    "equal channels stay equal": equal_channels,
    "a window of one reads its position": window_of_one,
}
