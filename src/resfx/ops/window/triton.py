"""Windowed attention as Triton kernels: blocks of queries against the keys that any of them reads, as they come.

Keys and values are read once and a window's overlap more; no score leaves a program. The backward pass computes the
softmax again, first for the queries, then for the keys, which query heads share without atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from resfx.ops.register import KERNEL_TYPES
from resfx.ops.triton import on, place_of

from .formula import reach
from .tiles import keys_of, mix, put, queries_of, scores_of, tile

WIDEST = 128  # features of a head


@triton.jit
def _forward(
    q, k, v, mask, out, qs, ks, vs, os, heads, groups, T, S, dk, dv, window, left, right, scale,
    MASK: tl.constexpr, CHUNK: tl.constexpr, CAUSAL: tl.constexpr, TYPE: tl.constexpr,
    DK: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    where, start = place_of(T, BLOCK)
    batch, head, t = where // heads, where % heads, start + tl.arange(0, BLOCK)
    query = tile(q, qs, batch, head, t, T, tl.arange(0, DK), dk, TYPE)
    mixed, _ = mix(
        query, k, v, mask, batch, head // groups, start, t, ks, vs, T, S, dk, dv, window, left, right, scale,
        MASK, CHUNK, CAUSAL, TYPE, DK, DV, BLOCK, KEYS,
    )  # fmt: skip
    put(out, os, batch, head, t, T, tl.arange(0, DV), dv, mixed)


@triton.jit
def _backward_queries(
    q, k, v, mask, grad, gq, normal, inner, qs, ks, vs, os, gs, heads, groups, T, S, dk, dv,
    window, left, right, scale,
    MASK: tl.constexpr, CHUNK: tl.constexpr, CAUSAL: tl.constexpr, TYPE: tl.constexpr,
    DK: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    where, start = place_of(T, BLOCK)
    batch, head, t = where // heads, where % heads, start + tl.arange(0, BLOCK)
    a, b = tl.arange(0, DK), tl.arange(0, DV)
    query = tile(q, qs, batch, head, t, T, a, dk, TYPE)
    g = tile(grad, os, batch, head, t, T, b, dv, TYPE)
    mixed, whole = mix(
        query, k, v, mask, batch, head // groups, start, t, ks, vs, T, S, dk, dv, window, left, right, scale,
        MASK, CHUNK, CAUSAL, TYPE, DK, DV, BLOCK, KEYS,
    )  # fmt: skip
    product = tl.sum(mixed * g, axis=1)
    tl.store(normal + where * T + t, whole, mask=t < T)
    tl.store(inner + where * T + t, product, mask=t < T)
    first, last = keys_of(start, T, S, window, left, right, CHUNK, CAUSAL, BLOCK)
    to_q = tl.zeros((BLOCK, DK), dtype=tl.float32)
    for at in range(first, last, KEYS):
        s = at + tl.arange(0, KEYS)
        key = tile(k, ks, batch, head // groups, s, S, a, dk, TYPE)
        z = scores_of(query, key, mask, batch, t, s, T, S, window, left, right, scale, MASK, CHUNK, CAUSAL)
        value = tile(v, vs, batch, head // groups, s, S, b, dv, TYPE)
        gp = tl.dot(g, tl.trans(value), input_precision="ieee")
        gz = tl.exp(z - whole[:, None]) * (gp - product[:, None]) * scale
        to_q += tl.dot(gz.to(TYPE), key, input_precision="ieee")
    put(gq, gs, batch, head, t, T, a, dk, to_q)


@triton.jit
def _backward_keys(
    q, k, v, mask, grad, gk, gv, normal, inner, qs, ks, vs, os, gks, gvs, heads, groups, T, S, dk, dv,
    window, left, right, scale,
    MASK: tl.constexpr, CHUNK: tl.constexpr, CAUSAL: tl.constexpr, TYPE: tl.constexpr,
    DK: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    shared = heads // groups
    where, start = place_of(S, KEYS)
    batch, head = where // shared, where % shared
    s = start + tl.arange(0, KEYS)
    a, b = tl.arange(0, DK), tl.arange(0, DV)
    key = tile(k, ks, batch, head, s, S, a, dk, TYPE)
    value = tile(v, vs, batch, head, s, S, b, dv, TYPE)
    to_k, to_v = tl.zeros((KEYS, DK), dtype=tl.float32), tl.zeros((KEYS, DV), dtype=tl.float32)
    first, last = queries_of(start, T, S, window, left, right, CHUNK, CAUSAL, KEYS)
    for member in range(groups):
        reader = head * groups + member
        for at in range(first, last, BLOCK):
            t = at + tl.arange(0, BLOCK)
            query = tile(q, qs, batch, reader, t, T, a, dk, TYPE)
            g = tile(grad, os, batch, reader, t, T, b, dv, TYPE)
            rows = (batch * heads + reader) * T + t
            z = scores_of(query, key, mask, batch, t, s, T, S, window, left, right, scale, MASK, CHUNK, CAUSAL)
            p = tl.exp(z - tl.load(normal + rows, mask=t < T, other=0.0)[:, None])
            to_v += tl.dot(tl.trans(p.to(TYPE)), g, input_precision="ieee")
            gp = tl.dot(g, tl.trans(value), input_precision="ieee")
            gz = p * (gp - tl.load(inner + rows, mask=t < T, other=0.0)[:, None]) * scale
            to_k += tl.dot(tl.trans(gz.to(TYPE)), query, input_precision="ieee")
    put(gk, gks, batch, head, s, S, a, dk, to_k)
    put(gv, gvs, batch, head, s, S, b, dv, to_v)


def supported(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, causal: bool, chunk: bool, scale: float
) -> bool:
    """Whether the kernels take these: one type, the same leading axes, heads of at most 128 features."""
    lead, size = q.shape[:-3], k.shape[-2]
    narrow = 0 < q.shape[-1] <= WIDEST and 0 < v.shape[-1] <= WIDEST
    alike = k.shape[:-3] == v.shape[:-3] == lead and q.dtype == k.dtype == v.dtype and q.dtype in KERNEL_TYPES
    masked = mask is None or (mask.shape[-1] == size and _broadcasts(mask.shape[:-1], lead))
    return narrow and alike and masked and size >= q.shape[-2] and q.numel() > 0


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, causal: bool, chunk: bool, scale: float
) -> Tensor:
    """:func:`resfx.ops.window.formula.windowed_attention`; the result lies in memory by time, then heads."""
    *lead, heads, size, _ = q.shape
    q, k, v = (_heads(x) for x in (q, k, v))
    out = q.new_empty((q.shape[0], size, heads, v.shape[-1])).transpose(1, 2)
    numbers, options = _arguments(q, k, v, mask, window, causal, chunk, scale)
    with on(q):
        _forward[(triton.cdiv(size, options["BLOCK"]) * q.shape[0] * heads,)](
            q, k, v, _readable(mask, k, lead), out, *map(_steps, (q, k, v, out)), *numbers, **options
        )
    return out.view(*lead, *out.shape[1:])


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, causal: bool, chunk: bool,
    scale: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of :func:`forward` for ``q``, ``k`` and ``v``, each laid out as its tensor."""
    *lead, heads, size, _ = q.shape
    shapes = [x.shape for x in (q, k, v)]
    grad, q, k, v = (_heads(x) for x in (grad, q, k, v))
    gq, gk, gv = (torch.empty_like(x) for x in (q, k, v))
    normal, inner = q.new_empty((2, q.shape[0] * heads * size), dtype=torch.float32).unbind(0)
    numbers, options = _arguments(q, k, v, mask, window, causal, chunk, scale)
    readable = _readable(mask, k, lead)
    with on(q):
        _backward_queries[(triton.cdiv(size, options["BLOCK"]) * q.shape[0] * heads,)](
            q, k, v, readable, grad, gq, normal, inner, *map(_steps, (q, k, v, grad, gq)), *numbers, **options
        )
        _backward_keys[(triton.cdiv(k.shape[2], options["KEYS"]) * k.shape[0] * k.shape[1],)](
            q, k, v, readable, grad, gk, gv, normal, inner, *map(_steps, (q, k, v, grad, gk, gv)), *numbers, **options
        )
    return *(g.view(shape) for g, shape in zip((gq, gk, gv), shapes, strict=True)), None, None, None, None, None


def _heads(x: Tensor) -> Tensor:
    """``(batch, heads, T, d)`` with the features of a head side by side."""
    x = x.reshape(-1, *x.shape[-3:])
    return x if x.stride(-1) == 1 else x.contiguous()


def _steps(x: Tensor) -> tuple[int, ...]:
    return x.stride()[:3]


def _readable(mask: Tensor | None, k: Tensor, lead: list[int]) -> Tensor:
    if mask is None:
        return k
    return mask.bool().expand(*lead, mask.shape[-1]).contiguous().view(torch.uint8)


def tiles(single: bool) -> dict[str, int]:
    """Launch parameters, for single or half precision: queries and keys of a tile, and how a program runs."""
    return {"BLOCK": 32 if single else 64, "KEYS": 16 if single else 32, "num_warps": 4,
            "num_stages": 2 if single else 3}  # fmt: skip


def _arguments(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, causal: bool, chunk: bool, scale: float
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    left, right = reach(window, causal)
    numbers = (q.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3])
    kind = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[q.dtype]
    if triton.knobs.runtime.interpret:  # it cannot multiply matrices of bfloat16
        kind = tl.float32
    wide = lambda n: max(triton.next_power_of_2(n), 16)
    options = {
        "MASK": mask is not None, "CHUNK": chunk, "CAUSAL": causal, "TYPE": kind, "DK": wide(q.shape[3]),
        "DV": wide(v.shape[3]), **tiles(q.dtype == torch.float32),
    }  # fmt: skip
    return (*numbers, window, left, right, scale), options
