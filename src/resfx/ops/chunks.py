"""Long lists of tensors in chunks of a few fixed sizes, so that few compiled functions serve lists of every length.

A read over ``K`` sources written out is another program for every ``K``: compiling all reads of a deep model takes
time that grows with the square of its depth. Run block by block, a model compiles what a read does with a chunk.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from resfx._torch import is_compiling, is_exporting, transforming

SIZES = (8, 4, 2, 1)
"""A list is cut into as many of each as fit."""

FEW = 2**18
"""Elements of a list that lie in a cache together: stacking them costs less than an operator for each."""

Compiler = Callable[[Callable[..., Any], int], Callable[..., Any]]

_compiler: contextvars.ContextVar[Compiler | None] = contextvars.ContextVar("resfx_chunks", default=None)


@contextlib.contextmanager
def compiling_chunks(compiler: Compiler | None) -> Iterator[None]:
    """Inside, long lists are cut, and ``compiler(function, size)`` makes what runs on each chunk."""
    token = _compiler.set(compiler)
    try:
        yield
    finally:
        _compiler.reset(token)


def chunk_compiler() -> Compiler | None:
    """What makes compiled chunks now; ``None`` where nothing does, and where everything is being compiled."""
    return None if is_compiling() else _compiler.get()


def with_chunks(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as it runs now, for code that runs it again later: in a backward pass."""
    if (compiler := chunk_compiler()) is None:
        return function

    def run(*args: Any) -> Any:
        with compiling_chunks(compiler):
            return function(*args)

    return run


def is_cut(items: Sequence[Any]) -> bool:
    """Whether a list is to be taken in chunks: where one of the model's is long, all are."""
    return len(items) > 1 and chunk_compiler() is not None and not transforming()


def is_stacked(items: Sequence[Tensor]) -> bool:
    """Whether a list is small enough to be stacked, so that a few operators serve all of it; in eager mode only."""
    first = items[0]
    alike = all(x.shape == first.shape for x in items)
    return alike and len(items) * first.numel() <= FEW and not (is_compiling() or is_exporting() or transforming())


def cut(count: int) -> Iterator[slice]:
    """Consecutive slices of ``SIZES`` that cover a list."""
    first = 0
    for size in SIZES:
        while count - first >= size:
            yield slice(first, first + size)
            first += size


def run_chunk(function: Callable[..., Any], sources: Sequence[Tensor], *args: Any) -> Any:
    """``function(sources, *args)`` on one chunk, compiled for its length."""
    compiler = _compiler.get()
    assert compiler is not None
    return compiler(function, len(sources))(list(sources), *args)


def chunked_sums(sources: Sequence[Tensor], weights: Tensor, base: Tensor | None) -> list[Tensor]:
    """``base + sum_j weights[..., i, j] sources[j]`` for every ``i``, in the type of the weights."""
    start = sources[0].new_zeros((), dtype=weights.dtype).expand_as(sources[0]) if base is None else base
    totals = [start] * weights.shape[-2]
    for part in cut(len(sources)):
        totals = run_chunk(_add_chunk, sources[part], apart(weights[..., part]), totals)
    return totals


def apart(part: Tensor) -> Tensor:
    """A copy, whose strides do not tell what it is a part of: they would be another program's."""
    return part.clone(memory_format=torch.contiguous_format)


def _add_chunk(sources: list[Tensor], weights: Tensor, totals: list[Tensor]) -> list[Tensor]:
    found = [total.to(weights.dtype) for total in totals]
    for j, source in enumerate(sources):
        found = [t + weights[..., i, j, None] * source.to(weights.dtype) for i, t in enumerate(found)]
    return found
