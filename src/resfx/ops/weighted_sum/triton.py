"""Weighted sums over a list of sources as Triton kernels: every source is read once, none is ever stacked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.register import KERNEL_TYPES
from resfx.ops.triton import addresses, given, in_one_piece, launch, on, row_of, rows_fit


@triton.jit
def _forward(
    table, like, weights, base, out, count, step, d,
    BASE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    at = row * d + columns
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for j in range(count):
        total += tl.load(weights + row * step + j).to(tl.float32) * row_of(table, j, at, inside, like)
    kind = out.dtype.element_ty
    if BASE:
        total = tl.load(base + at, mask=inside, other=0.0).to(tl.float32) + total.to(kind).to(tl.float32)
    tl.store(out + at, total.to(kind), mask=inside)


@triton.jit
def _backward(grad, table, weights, gs, gw, count, step, d, rows, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    at = row * d + columns
    size = tl.cast(rows, tl.int64) * d  # of one source: of all, more than 32 bits count
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    for j in range(count):
        s = row_of(table, j, at, inside, gs)
        weight = tl.load(weights + row * step + j).to(tl.float32)
        tl.store(gs + j * size + at, (weight * g).to(gs.dtype.element_ty), mask=inside)
        tl.store(gw + row * count + j, tl.sum(g * s, axis=0))


def supported(sources: Sequence[Tensor], weights: Tensor, base: Tensor | None) -> bool:
    """Whether the kernels take these: sources of one shape and type, weights ``(n,)`` or ``(..., n)``."""
    n = len(sources)
    shaped = weights.shape in (torch.Size((n,)), torch.Size((*sources[0].shape[:-1], n)))
    return rows_fit(sources, base) and shaped and weights.dtype in KERNEL_TYPES


def forward(sources: Sequence[Tensor], weights: Tensor, base: Tensor | None) -> Tensor:
    """:func:`resfx.ops.weighted_sum.formula.weighted_sum`."""
    sources, d = in_one_piece(sources), sources[0].shape[-1]
    out = torch.empty_like(sources[0] if base is None else base, memory_format=torch.contiguous_format)
    with on(out):
        _forward[(out.numel() // d,)](
            addresses(sources), sources[0], weights.contiguous(), given(base, out), out, len(sources),
            _step(weights), d, BASE=base is not None, **launch(d),
        )  # fmt: skip
    return out


def gradients(
    grad: Tensor, sources: Sequence[Tensor], weights: Tensor, base: Tensor | None
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """The gradients of :func:`forward`; those of the sources are parts of one tensor."""
    sources, d = in_one_piece(sources), sources[0].shape[-1]
    rows = grad.numel() // d
    gs = sources[0].new_empty((len(sources), *sources[0].shape))
    gw = weights.new_empty((rows, len(sources)), dtype=torch.float32)
    with on(grad):
        _backward[(rows,)](
            grad.contiguous(), addresses(sources), weights.contiguous(), gs, gw, len(sources), _step(weights), d,
            rows, **launch(d),
        )  # fmt: skip
    gw = gw.sum(0) if weights.ndim == 1 else gw.view(weights.shape)
    return list(gs.unbind(0)), gw.to(weights.dtype), None if base is None else grad


def _step(weights: Tensor) -> int:
    """How far apart the weights of two rows are."""
    return 0 if weights.ndim == 1 else weights.shape[-1]
