"""Attention reads for ``torch.compile``: gradients in closed form, many sources in groups of a fixed size.

One compiled loop over all ``n`` sources is fast, but it is a loop of its own for every ``n``, and its compile time
grows with ``n``: a model that reads full depth compiles every count there is. Here a long read is a running softmax
over groups of a fixed size, and its backward pass needs one group at a time. The groups are regions that
``torch.compile`` compiles once and calls from every read; only a read's first group, the remainder, has other sizes.
A model compiled block by block compiles the groups themselves and runs what is between them as it is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._chunks import SIZES, Compiler, chunk_compiler
from ._operators import accumulator, per_row

GROUP = 8  # sources that share one loop in a model compiled as one graph, and the most that are read in one loop

_LIMIT: dict[str, Any] = {"max_reuse_entries": 2**16}  # the groups are few, whatever the count
_known = inspect.signature(torch.compiler.nested_compile_region).parameters
_region = torch.compiler.nested_compile_region(**{k: v for k, v in _LIMIT.items() if k in _known})  # not in torch 2.11
Running = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Of the sources so far, in float32 for half types: ``sum e^(l - m) s``, ``m``, ``sum e^(l - m)``, and ``sum s``."""


def grouped_read(sources: Sequence[Tensor], query: Tensor, gate: Tensor | None, eps: float, relative: bool) -> Tensor:
    """:func:`resfx.ops._depth.attention_read` without its base, for ``torch.compile``.

    With equal scores all exponentials are one, the two sums of a relative read are the same sum, and it is zero
    exactly.

    Args:
        sources: tensors ``(..., d)`` of one shape and type, no two of them the same.
    """
    return _GroupedRead.apply(query, gate, eps, relative, *sources)[0]


def groups(sources: Sequence[Any], size: int = GROUP) -> list[Sequence[Any]]:
    """The remainder, then groups of ``size``."""
    first = len(sources) % size or size
    return [sources[:first], *(sources[i : i + size] for i in range(first, len(sources), size))]


def score(source: Tensor, query: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``query . RMSNorm(source)`` and ``1 / rms(source)``, both ``(..., 1)``."""
    scale = torch.rsqrt((source * source).mean(-1, keepdim=True) + eps)
    return (source * query).sum(-1, keepdim=True) * scale, scale


def _shares(wide: list[Tensor], query: Tensor, eps: float, before: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """``e^(l_j - m)`` of each source and ``m``, the highest score; ``before`` is the highest of earlier sources."""
    logits = [score(s, query, eps)[0] for s in wide]
    top = functools.reduce(torch.maximum, logits if before is None else [before, *logits])
    top = per_row(top, logits[0])
    return [per_row(torch.exp(logit - top), logit) for logit in logits], top


def _take(query: Tensor, eps: float, before: Running, sources: Sequence[Tensor]) -> Running:
    total, top, mass, plain = before
    wide = [s.to(query.dtype) for s in sources]
    shares, higher = _shares(wide, query, eps, top)
    shrink = per_row(torch.exp(top - higher), higher)
    total = total * shrink
    for e, source in zip(shares, wide, strict=True):
        total = total + e * source
        plain = None if plain is None else plain + source
    return total, higher, per_row(mass * shrink + functools.reduce(torch.add, shares), higher), plain


def _first(query: Tensor, eps: float, relative: bool, *sources: Tensor) -> Running:
    wide = [s.to(query.dtype) for s in sources]
    shares, top = _shares(wide, query, eps, None)
    total, plain = shares[0] * wide[0], wide[0]
    for e, source in zip(shares[1:], wide[1:], strict=True):
        total, plain = total + e * source, plain + source
    return total, top, per_row(functools.reduce(torch.add, shares), top), plain.clone() if relative else None


def _next(
    query: Tensor, eps: float, total: Tensor, top: Tensor, mass: Tensor, plain: Tensor | None, *sources: Tensor
) -> Running:
    return _take(query, eps, (total, top, mass, plain), sources)


def _last(
    query: Tensor, eps: float, total: Tensor, top: Tensor, mass: Tensor, plain: Tensor | None, count: Tensor | None,
    *sources: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _finish(_take(query, eps, (total, top, mass, plain), sources), count, sources[0].dtype)


def _finish(running: Running, count: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The average under the softmax, the highest score, the mass, and ``count`` averages less the plain sum."""
    total, top, mass, plain = running
    average = (total * per_row(1 / mass, top)).to(dtype)
    if plain is None or count is None:
        return average, top, mass
    return average, top, mass, total * per_row(count / mass, top) - plain


def _gradients(
    grad: Tensor, query: Tensor, top: Tensor, factor: Tensor, mean: Tensor, eps: float, relative: bool,
    *sources: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Of one group: for the query, and for each source.

    Args:
        grad: of the weighted sum, ``(..., d)``.
        top: the highest score.
        factor: of the exponentials, ``(..., 1)``.
        mean: of ``grad . source`` under the softmax, ``(..., 1)``.
    """
    along: Tensor | None = None  # is summed over the rows: one tensor, where each of its terms would be read again
    for_sources: list[Tensor] = []
    for source in sources:
        s = source.to(query.dtype)
        logit, scale = score(s, query, eps)
        share = per_row(torch.exp(logit - top) * factor, logit)
        slope = per_row(share * ((grad * s).sum(-1, keepdim=True) - mean) * scale, logit)
        along = slope * s if along is None else along + slope * s
        weight = share - 1 if relative else share
        for_sources.append((weight * grad + slope * (query - logit * scale / s.shape[-1] * s)).to(source.dtype))
    assert along is not None
    return along.flatten(0, -2).sum(0), *for_sources


_REGIONS = {f: _region(f) for f in (_first, _next, _last, _gradients)}


def _compiled(function: Any, sources: Sequence[Tensor], compiler: Compiler | None) -> Any:
    """What runs a group: a region of the graph that is being compiled, or a compiled function of its own."""
    return _REGIONS[function] if compiler is None else compiler(function, len(sources))


class _GroupedRead(torch.autograd.Function):
    """The read. The backward pass needs the inputs, the softmax average, and two numbers per row."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        # Dynamo takes a first argument for the context, or not, by the number of named parameters: there are none.
        query, gate, eps, relative, *sources = args
        dtype = sources[0].dtype
        wide = accumulator(dtype)
        ctx.compiler = by = chunk_compiler()
        ctx.size = GROUP if by is None else SIZES[0]
        first, *rest = groups(sources, ctx.size)
        q = query.to(wide)
        start = _compiled(_first, first, by) if rest else _first
        running: Running = start(q, eps, relative, *first)
        for group in rest[:-1]:
            running = _compiled(_next, group, by)(q, eps, *running, *group)
        # A tensor over a tensor: n / n is one exactly, a number over a tensor is a reciprocal.
        count = torch.full_like(running[2], len(sources)) if relative else None
        if rest:
            average, top, mass, *read = _compiled(_last, rest[-1], by)(q, eps, *running, count, *rest[-1])
        else:
            average, top, mass, *read = _finish(running, count, dtype)
        out = read[0].to(dtype) if read else average
        if gate is not None:
            out = (out * gate.to(wide)).to(dtype)
        found = [] if out is average else [average]
        ctx.eps, ctx.relative = eps, relative
        ctx.save_for_backward(query, gate, average, top, mass, *sources)
        ctx.mark_non_differentiable(*found, top, mass)
        return out, *found, top, mass

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        query, gate, average, top, mass, *sources = ctx.saved_tensors
        wide = accumulator(average.dtype)
        q, g = query.to(wide), grad.to(wide)
        shared = (g * average.to(wide)).sum(-1, keepdim=True)
        for_gate = None
        if gate is not None:
            for_gate, g, shared = shared.sum().to(gate.dtype), g * gate.to(wide), shared * gate.to(wide)
        factor = torch.full_like(mass, len(sources) if ctx.relative else 1) / mass
        for_query: Tensor | None = None
        for_sources: list[Tensor] = []
        for group in (cut := groups(sources, ctx.size)):
            run = _compiled(_gradients, group, ctx.compiler) if len(cut) > 1 else _gradients
            part, *rest = run(g, q, top, factor, shared, ctx.eps, ctx.relative, *group)
            for_query = part if for_query is None else for_query + part
            for_sources += rest
        assert for_query is not None
        return for_query.to(query.dtype), for_gate, None, None, *for_sources
