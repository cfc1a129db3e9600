"""Arguments for the operators with kernels: awkward shapes, layouts and options. Results are checked on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .against import draw, turned

Build = Callable[[torch.dtype], tuple[Any, ...]]
"""Makes the arguments of a call in a type, on the default device."""


def delta(width: int, mix: str, base: str) -> Build:
    def build(dtype: torch.dtype) -> tuple[Any, ...]:
        x, f, b, v = draw(2, 3, width), draw(2, 3, width), draw(2, 3, 1), draw(2, 3, 1)
        m = {"none": None, "scalar": torch.tensor(0.3), "channel": draw(width)}[mix]
        total = (x + 0.5 * f).to(dtype) if base == "total" else None
        cast = lambda t: None if t is None else t.to(dtype)
        return cast(x), cast(f), b.float(), v.float(), cast(m), total, 1e-4, base != "x"

    return build


def attention_read(count: int, width: int, relative: bool, base: bool, gate: bool) -> Build:
    def build(dtype: torch.dtype) -> tuple[Any, ...]:
        sources = [draw(2, 3, width, dtype=dtype) for _ in range(count)]
        sources[0] = turned(sources[0])
        added = turned(draw(2, 3, width, dtype=dtype)) if base else None
        query = (draw(width) / width**0.5).to(dtype)  # scores of about one: a softmax that is not all on one source
        return sources, query, added, draw(dtype=dtype) if gate else None, 1e-6, relative

    return build


def weighted_sum(count: int, width: int, per_token: bool, base: bool) -> Build:
    def build(dtype: torch.dtype) -> tuple[Any, ...]:
        sources = [draw(2, 3, width, dtype=dtype) for _ in range(count)]
        sources[-1] = sources[-1][:, :1].expand(2, 3, width)
        weights = turned(draw(2, 3, count)).float() if per_token else draw(count, dtype=dtype)
        return sources, weights, turned(draw(2, 3, width, dtype=dtype)) if base else None

    return build


def window(
    size: int, length: int, reads: int, heads: int, shared: int, causal: bool, chunk: bool, masked: bool
) -> Build:
    def build(dtype: torch.dtype) -> tuple[Any, ...]:
        q = draw(2, size, heads, 5, dtype=dtype).transpose(1, 2)
        k, v = draw(2, shared, length, 5, dtype=dtype), draw(2, length, shared, 18, dtype=dtype).transpose(1, 2)
        mask = torch.arange(length) >= torch.tensor([[0], [length // 2 + 1]]) if masked else None
        return q, k, v, mask, reads, causal, chunk, 0.3

    return build


def convolution(length: int, size: int, taps: int, left: int, extras: bool) -> Build:
    def build(dtype: torch.dtype) -> tuple[Any, ...]:
        x, base = turned(draw(2, length, 7, dtype=dtype)), turned(draw(2, size, 7, dtype=dtype))
        bias = draw(7, dtype=dtype) if extras else None
        return x, draw(7, taps, dtype=dtype), bias, base if extras else None, extras, left, size

    return build


def channels_of(count: int, width: int, dtype: torch.dtype, spread: bool) -> Tensor:
    """A state: channels of their own, the other way round in memory, or one channel as a view."""
    if spread:
        return draw(2, 3, 1, width, dtype=dtype).expand(2, 3, count, width)
    return turned(draw(2, 3, count, width, dtype=dtype))


def wide_delta(channels: int, width: int, mix: str, add: bool, erase: bool) -> Build:
    def build(dtype: torch.dtype) -> tuple[Any, ...]:
        state, f = channels_of(channels, width, dtype, not add), turned(draw(2, 3, width, dtype=dtype))
        m = {"none": None, "scalar": draw(dtype=dtype), "channel": draw(width).to(dtype)}[mix]
        return state, f, draw(2, 3, 1).float(), turned(draw(2, 3, channels)).float(), m, 1e-4, add, erase

    return build


def wide_mix(channels: int, width: int, spread: bool, matrix: str) -> Build:
    def build(dtype: torch.dtype) -> tuple[Any, ...]:
        state, f = channels_of(channels, width, dtype, spread), turned(draw(2, 3, width, dtype=dtype))
        static = "static" in matrix
        write = draw(channels, dtype=dtype) if static else turned(draw(2, 3, channels)).float()
        own = draw(2, 3, channels, channels).float().transpose(-1, -2)
        m = draw(channels, channels, dtype=dtype).T if static else own
        return state, f, write, None if matrix == "none" else m, "unit" in matrix

    return build


def wide_combine(channels: int, width: int, spread: bool, static: bool, unit: bool) -> Build:
    def build(dtype: torch.dtype) -> tuple[Any, ...]:
        state = channels_of(channels, width, dtype, spread)
        weights = draw(channels, 1).to(dtype) if static else turned(draw(2, 3, channels, 1)).float()
        return state, weights, (draw(1) if static else draw(2, 3, 1)).float() if unit else None

    return build


def sinkhorn(size: int, iterations: int, newton: int) -> Build:
    def build(dtype: torch.dtype) -> tuple[Any, ...]:
        logits = turned(draw(3, 12, size, size)) + 2 * torch.eye(size, dtype=torch.float64)
        return logits.to(dtype), iterations, newton

    return build


def named(build: Callable[..., Build], **options: list[Any]) -> dict[str, Build]:
    """A case of every combination; several arguments under one key come as tuples."""
    found = {}
    for picked in itertools.product(*options.values()):
        label = ", ".join(f"{k} {v}" for k, v in zip(options, picked, strict=True))
        values: list[Any] = []
        for value in picked:
            values += value if isinstance(value, tuple) else (value,)
        found[label.replace("_", " ")] = build(*values)
    return found


WINDOWS = {
    "causal, groups": (7, 7, 3, 4, 2, True, False, False),
    "causal, padded, blocks": (70, 70, 5, 2, 1, True, False, True),
    "last queries": (4, 45, 40, 2, 2, True, False, True),
    "centred": (37, 37, 20, 2, 2, False, False, False),
    "centred, padded": (9, 9, 4, 2, 1, False, False, True),
    "chunks so far": (37, 37, 20, 2, 1, True, True, True),
    "chunks": (37, 37, 5, 1, 1, False, True, True),
    "beyond the length": (5, 5, 30, 1, 1, True, False, False),
}
MIXES, BOTH = ["none", "scalar", "channel"], [False, True]

ODD: dict[str, dict[str, Build]] = {
    "delta": named(delta, width=[3, 129], mix=MIXES, base=["x", "sum", "total"]),
    "attention_read": named(
        attention_read, count_width=[(1, 5), (2, 64), (5, 33)],
        relative_base_gate=[(True, True, False), (False, False, False), (False, True, True)],
    ),
    "weighted_sum": named(weighted_sum, count_width=[(1, 5), (6, 33)], per_token=BOTH, base=BOTH),
    "window": {label: window(*numbers) for label, numbers in WINDOWS.items()},
    "short_convolution": named(
        convolution, length_size_taps_left=[(5, 5, 4, 3), (70, 70, 3, 1), (9, 6, 4, 0), (3, 3, 1, 0)], extras=BOTH
    ),
    "channels.mix": named(
        wide_mix, channels_width_spread=[(2, 20, False), (3, 33, False), (4, 300, True)],
        matrix=["none", "static", "unit, static", "unit"],
    ),
    "channels.delta": named(
        wide_delta, channels_width=[(1, 20), (3, 33)], mix=MIXES,
        add_erase=[(True, True), (False, True), (True, False)],
    ),
    "channels.combine": named(
        wide_combine, channels_width_spread=[(2, 20, False), (3, 33, False), (4, 65, True)], static=BOTH, unit=BOTH
    ),
    "sinkhorn": named(sinkhorn, size=[1, 2, 3, 4, 8], rounds_newton=[(0, 0), (4, 0), (2, 8)]),
}  # fmt: skip
"""By operator as :mod:`resfx.ops.choice` names them."""
