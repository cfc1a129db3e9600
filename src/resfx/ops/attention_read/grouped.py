"""Attention reads for ``torch.compile``: gradients in closed form, many sources in groups of a fixed size.

One compiled loop over all ``n`` sources is fast, but it is a loop of its own for every ``n``, and its compile time
grows with ``n``: a model that reads full depth compiles every count there is. Here a long read is a running softmax
over groups of a fixed size, and its backward pass needs one group at a time. The groups are regions that
``torch.compile`` compiles once and calls from every read; only a read's first group, the remainder, has other sizes.
A model compiled block by block compiles the groups themselves, in the sizes of :mod:`resfx.ops.chunks`, and runs what
is between them as it is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resfx.ops.chunks import Compiler, chunk_compiler, cut
from resfx.ops.inductor import column_sum, per_row
from resfx.ops.register import accumulator, in_type, plus

GROUP = 8  # sources that share one loop in a model compiled as one graph, and the most that are read in one loop

_LIMIT: dict[str, Any] = {"max_reuse_entries": 2**16}  # the groups are few, whatever the count
_known = inspect.signature(torch.compiler.nested_compile_region).parameters
_region = torch.compiler.nested_compile_region(**{k: v for k, v in _LIMIT.items() if k in _known})  # not in torch 2.11
Running = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Of the sources so far, in float32 for half types: ``sum e^(l - m) s``, ``m``, ``sum e^(l - m)``, and ``sum s``."""


def grouped_read(sources: Sequence[Tensor], query: Tensor, eps: float, relative: bool) -> Tensor:
    """:func:`resfx.ops.attention_read.formula.attention_read` without base and gate, for ``torch.compile``.

    With equal scores all exponentials are one, the two sums of a relative read are the same sum, and it is zero
    exactly.

    Args:
        sources: tensors ``(..., d)`` of one shape and type, no two of them the same.
    """
    return _GroupedRead.apply(query, eps, relative, *sources)[0]


def in_groups(sources: Sequence[Any]) -> list[Sequence[Any]]:
    """The remainder, then groups of the size that all share."""
    first = len(sources) % GROUP or GROUP
    return [sources[:first], *(sources[i : i + GROUP] for i in range(first, len(sources), GROUP))]


def _groups(sources: Sequence[Any], compiler: Compiler | None) -> list[Sequence[Any]]:
    """Groups that are regions of a graph, or chunks where each is a compiled function of its own."""
    return in_groups(sources) if compiler is None else [sources[part] for part in cut(len(sources))]


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
    return total, higher, per_row(mass * shrink + plus(shares), higher), plain


def _nothing(like: Tensor, dtype: torch.dtype, relative: bool) -> Running:
    """Of no sources, for tensors in the shape of one."""
    total, row = torch.zeros_like(like, dtype=dtype), like.new_zeros((*like.shape[:-1], 1), dtype=dtype)
    return total, torch.full_like(row, -torch.inf), row, torch.zeros_like(total) if relative else None


def _first(query: Tensor, eps: float, relative: bool, *sources: Tensor) -> Running:
    wide = [s.to(query.dtype) for s in sources]
    shares, top = _shares(wide, query, eps, None)
    total = plus(e * source for e, source in zip(shares, wide, strict=True))
    return total, top, per_row(plus(shares), top), plus(wide).clone() if relative else None


def _whole(query: Tensor, eps: float, relative: bool, *sources: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The read of sources that are one group, the highest score, and the mass: weights are known before any sum."""
    wide = [s.to(query.dtype) for s in sources]
    shares, top = _shares(wide, query, eps, None)
    mass = per_row(plus(shares), top)
    factor = _count(sources, mass) / mass if relative else 1 / mass
    weights = [per_row(e * factor, top) for e in shares]
    if relative:
        weights = [w - 1 for w in weights]
    out = plus(w * source for w, source in zip(weights, wide, strict=True))
    return in_type(out, sources[0].dtype), top, mass


def _count(sources: Sequence[Tensor], like: Tensor) -> Tensor:
    """How many there are, as a tensor: over a tensor ``n / n`` is one exactly, a number over one is a reciprocal."""
    return torch.full_like(like, len(sources))


def _next(
    query: Tensor, eps: float, total: Tensor, top: Tensor, mass: Tensor, plain: Tensor | None, *sources: Tensor
) -> Running:
    return _take(query, eps, (total, top, mass, plain), sources)


def _last(
    query: Tensor, eps: float, total: Tensor, top: Tensor, mass: Tensor, plain: Tensor | None, count: Tensor | None,
    *sources: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The read, the highest score and the mass; of a relative read, ``count`` averages less the plain sum, also the
    average under the softmax."""
    total, top, mass, plain = _take(query, eps, (total, top, mass, plain), sources)
    average = in_type(total * per_row(1 / mass, top), sources[0].dtype)
    if plain is None or count is None:
        return average, top, mass
    return in_type(total * per_row(count / mass, top) - plain, average.dtype), top, mass, average


def _gradients(
    grad: Tensor, query: Tensor, top: Tensor, factor: Tensor, mean: Tensor | None, eps: float, relative: bool,
    *sources: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Of one group: for the query, and for each source.

    Args:
        grad: of the weighted sum, ``(..., d)``.
        top: the highest score.
        factor: of the exponentials, ``(..., 1)``.
        mean: of ``grad . source`` under the softmax, ``(..., 1)``; ``None`` where the group is all there is.
    """
    wide = [s.to(query.dtype) for s in sources]
    scores = [score(s, query, eps) for s in wide]
    shares = [per_row(torch.exp(logit - top) * factor, logit) for logit, _ in scores]
    products = [(grad * s).sum(-1, keepdim=True) for s in wide]
    if mean is None:
        mean = plus(e * product for e, product in zip(shares, products, strict=True))
        mean = per_row(mean / len(sources) if relative else mean, top)
    slopes = [per_row(e * (product - mean) * scale, logit)
              for e, product, (logit, scale) in zip(shares, products, scores, strict=True)]  # fmt: skip
    # Is summed over the rows: one tensor, where each of its terms would be read again.
    along = plus(slope * s for slope, s in zip(slopes, wide, strict=True))
    found = [
        (e - 1 if relative else e) * grad + slope * (query - logit * scale / s.shape[-1] * s)
        for s, (logit, scale), e, slope in zip(wide, scores, shares, slopes, strict=True)
    ]
    return column_sum(along), *(g.to(s.dtype) for g, s in zip(found, sources, strict=True))


_REGIONS = {f: _region(f) for f in (_first, _next, _last, _gradients)}


def _compiled(function: Any, sources: Sequence[Tensor], compiler: Compiler | None) -> Any:
    """What runs a group: a region of the graph that is being compiled, or a compiled function of its own."""
    return _REGIONS[function] if compiler is None else compiler(function, len(sources))


class _GroupedRead(torch.autograd.Function):
    """The read. The backward pass needs the inputs and two numbers per row; where groups run one by one, the softmax
    average too."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        # Dynamo takes a first argument for the context, or not, by the number of named parameters: there are none.
        query, ctx.eps, ctx.relative, *sources = args
        q = query.to(accumulator(sources[0].dtype))
        ctx.compiler = by = chunk_compiler()
        groups = _groups(sources, by)
        average: list[Tensor] = []
        beside: list[Tensor] = []
        if by is None and len(groups) == 1:
            out, top, mass = _whole(q, ctx.eps, ctx.relative, *sources)
        else:
            if by is None:
                running: Running = _compiled(_first, groups[0], by)(q, ctx.eps, ctx.relative, *groups.pop(0))
            else:
                running = _nothing(sources[0], q.dtype, ctx.relative)
            for group in groups[:-1]:
                running = _compiled(_next, group, by)(q, ctx.eps, *running, *group)
            count = _count(sources, running[2]) if ctx.relative else None
            out, top, mass, *beside = _compiled(_last, groups[-1], by)(q, ctx.eps, *running, count, *groups[-1])
            average = beside or [out]
        ctx.save_for_backward(query, top, mass, *sources, *average)
        ctx.mark_non_differentiable(*beside, top, mass)
        ctx.count = len(sources)
        return out, *beside, top, mass

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        query, top, mass, *saved = ctx.saved_tensors
        sources, average = saved[: ctx.count], saved[ctx.count :]
        wide = accumulator(grad.dtype)
        q, g, mean = query.to(wide), grad.to(wide), None
        if average:
            mean = (g * average[0].to(wide)).sum(-1, keepdim=True)
        factor = _count(sources, mass) / mass if ctx.relative else 1 / mass
        groups = _groups(sources, ctx.compiler)
        for_query: Tensor | None = None
        for_sources: list[Tensor] = []
        for group in groups:
            run = _compiled(_gradients, group, ctx.compiler) if average else _gradients
            part, *rest = run(g, q, top, factor, mean, ctx.eps, ctx.relative, *group)
            for_query = part if for_query is None else for_query + part
            for_sources += rest
        assert for_query is not None
        return for_query.to(query.dtype), None, None, *for_sources
