"""Softmax reads over a list of sources as Triton kernels: a program per row, no source stacked, no score stored.

A row of all sources is read twice, for the scores and for the sum: the second time from cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.register import KERNEL_TYPES
from resfx.ops.triton import PROGRAMS, addresses, given, in_one_piece, launch, on, row_of, rows_fit


@triton.jit
def _score(s, q, d, eps):
    """``query . source`` and ``1 / rms(source)``."""
    return tl.sum(s * q, axis=0), tl.rsqrt(tl.sum(s * s, axis=0) / d + eps)


@triton.jit
def _softmax(z, count, RELATIVE: tl.constexpr):
    """Softmax over sources; times their number if relative, then exactly 1 where all are equal: hence the division."""
    e = tl.exp(z - tl.max(z, axis=0))
    total = tl.sum(e, axis=0) + tl.zeros_like(e)
    return tl.div_rn(e * count if RELATIVE else e, total)


@triton.jit
def _pick(values, index, j):
    return tl.sum(tl.where(index == j, values, 0.0), axis=0)


@triton.jit
def _forward(
    table, like, query, base, gate, out, count, d, eps,
    BASE: tl.constexpr, GATE: tl.constexpr, RELATIVE: tl.constexpr, SOURCES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    at = row * d + columns
    q = tl.load(query + columns, mask=inside, other=0.0).to(tl.float32)
    index = tl.arange(0, SOURCES)
    z = tl.full((SOURCES,), float("-inf"), dtype=tl.float32)
    for j in range(count):
        dot, scale = _score(row_of(table, j, at, inside, like), q, d, eps)
        z = tl.where(index == j, dot * scale, z)
    weights = _softmax(z, count, RELATIVE)
    if RELATIVE:
        weights -= 1.0
    if GATE:
        weights *= tl.load(gate).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for j in range(count):
        total += _pick(weights, index, j) * row_of(table, j, at, inside, like)
    kind = out.dtype.element_ty
    if BASE:
        total = tl.load(base + at, mask=inside, other=0.0).to(tl.float32) + total.to(kind).to(tl.float32)
    tl.store(out + at, total.to(kind), mask=inside)


@triton.jit
def _backward(
    grad, table, query, gate, gs, gq, ggate, count, d, rows, eps,
    GATE: tl.constexpr, RELATIVE: tl.constexpr, SOURCES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    size = tl.cast(rows, tl.int64) * d  # of one source: of all, more than 32 bits count
    q = tl.load(query + columns, mask=inside, other=0.0).to(tl.float32)
    index = tl.arange(0, SOURCES)
    summed = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(first, rows, tl.num_programs(0)):
        at = row * d + columns
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        z = tl.full((SOURCES,), float("-inf"), dtype=tl.float32)
        products = tl.zeros((SOURCES,), dtype=tl.float32)
        for j in range(count):
            s = row_of(table, j, at, inside, gs)
            dot, scale = _score(s, q, d, eps)
            z = tl.where(index == j, dot * scale, z)
            products = tl.where(index == j, tl.sum(g * s, axis=0), products)
        weights = _softmax(z, count, RELATIVE)
        mean = tl.sum(weights * products, axis=0)
        if RELATIVE:
            to_z = weights * (products - mean / count)
            weights -= 1.0
        else:
            to_z = weights * (products - mean)
        if GATE:
            tl.store(ggate + row, tl.sum(weights * products, axis=0))
            opened = tl.load(gate).to(tl.float32)
            weights, to_z = weights * opened, to_z * opened
        for j in range(count):
            s = row_of(table, j, at, inside, gs)
            dot, scale = _score(s, q, d, eps)
            across = _pick(to_z, index, j) * scale
            along = across * dot * scale * scale / d
            to_s = _pick(weights, index, j) * g + across * q - along * s
            tl.store(gs + j * size + at, to_s.to(gs.dtype.element_ty), mask=inside)
            summed += across * s
    tl.store(gq + first * d + columns, summed, mask=inside)


def supported(
    sources: Sequence[Tensor], query: Tensor, base: Tensor | None, gate: Tensor | None, eps: float, relative: bool
) -> bool:
    """Whether the kernels take these: sources of one shape and type, a query ``(d,)`` and one number for a gate."""
    queried = query.shape == sources[0].shape[-1:] and query.dtype in KERNEL_TYPES
    gated = gate is None or (gate.shape in ((), (1,)) and gate.dtype in KERNEL_TYPES)
    return rows_fit(sources, base) and queried and gated


def forward(
    sources: Sequence[Tensor], query: Tensor, base: Tensor | None, gate: Tensor | None, eps: float, relative: bool
) -> Tensor:
    """:func:`resfx.ops.attention_read.formula.attention_read`."""
    sources, d = in_one_piece(sources), sources[0].shape[-1]
    table = addresses(sources)
    out = torch.empty_like(sources[0] if base is None else base, memory_format=torch.contiguous_format)
    with on(out):
        _forward[(out.numel() // d,)](
            table, sources[0], query.contiguous(), given(base, out), given(gate, out), out, len(sources), d, eps,
            BASE=base is not None, GATE=gate is not None, RELATIVE=relative, SOURCES=len(table), **launch(d),
        )  # fmt: skip
    return out


def gradients(
    grad: Tensor, sources: Sequence[Tensor], query: Tensor, base: Tensor | None, gate: Tensor | None,
    eps: float, relative: bool,
) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None, None, None]:  # fmt: skip
    """The gradients of :func:`forward`; sums over rows are taken in a fixed order, without atomics."""
    sources, d = in_one_piece(sources), sources[0].shape[-1]
    table, rows = addresses(sources), grad.numel() // d
    programs = min(rows, PROGRAMS)
    gs = sources[0].new_empty((len(sources), *sources[0].shape))
    gq = query.new_empty((programs, d), dtype=torch.float32)
    ggate = query.new_empty(rows if gate is not None else 1, dtype=torch.float32)
    with on(grad):
        _backward[(programs,)](
            grad.contiguous(), table, query.contiguous(), given(gate, grad), gs, gq, ggate, len(sources), d, rows, eps,
            GATE=gate is not None, RELATIVE=relative, SOURCES=len(table), **launch(d),
        )  # fmt: skip
    to_gate = None if gate is None else ggate.sum(0).to(gate.dtype).view(gate.shape)
    return list(gs.unbind(0)), gq.sum(0).to(query.dtype), None if base is None else grad, to_gate, None, None
