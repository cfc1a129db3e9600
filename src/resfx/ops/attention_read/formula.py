"""A softmax read over a list of sources, the operator of Attention Residuals (arXiv 2603.15031, equations 2 to 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resfx._torch import is_exporting
from resfx.ops.chunks import is_cut, is_stacked
from resfx.ops.native import Native
from resfx.ops.register import accumulator, fused, in_type, transforming
from resfx.ops.scores import relative_softmax, rms_scores
from resfx.ops.weighted_sum.formula import stacked_sum, weighted_sum_formula

from .grouped import grouped_read


def attention_read(
    sources: Sequence[Tensor],
    query: Tensor,
    base: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    eps: float,
    relative: bool = False,
) -> Tensor:
    """``base + gate sum_j a_j sources[j]`` with ``a = softmax_j(query . RMSNorm(source_j))`` (AttnRes, eq. 2-4).

    Args:
        sources: ``n`` tensors ``(..., d)``.
        query: ``(d,)``, with the gain of the norm.
        base: ``(..., d)``; kept bit for bit where all weights are zero.
        gate: one number, ``()`` or ``(1,)``.
        eps: of the norm.
        relative: weigh with ``n a_j - 1`` instead: zero where all scores are equal.

    Returns:
        ``(..., d)`` in the type of the base, or of the sources; float32 inside for half types.
    """
    return _operator(list(sources), query, base, gate, eps, relative)


def attention_read_formula(
    sources: Sequence[Tensor], query: Tensor, base: Tensor | None, gate: Tensor | None, eps: float, relative: bool
) -> Tensor:
    """:func:`attention_read` step by step."""
    return weighted_sum_formula(sources, _weights(rms_scores(sources, query, eps), gate, relative), base)


def _weights(logits: Tensor, gate: Tensor | None, relative: bool) -> Tensor:
    weights = relative_softmax(logits) - 1 if relative else logits.softmax(-1)
    return weights if gate is None else weights * gate


def _open_read(
    sources: Sequence[Tensor], query: Tensor, base: Tensor | None, gate: Tensor | None, eps: float, relative: bool
) -> Tensor:
    """:func:`attention_read` in plain torch: compiled with gradients in closed form, many sources in groups."""
    compiling = torch.compiler.is_dynamo_compiling() and not is_exporting() and not transforming()
    if (compiling or is_cut(sources)) and _alike(sources, base):
        read = grouped_read(sources, query, eps, relative)
        if gate is not None:
            wide = accumulator(read.dtype)
            read = (read.to(wide) * gate.to(wide)).to(read.dtype)
        return read if base is None else base + read
    if is_stacked(sources) and not is_cut(sources):
        return _stacked_read(sources, query, base, gate, eps, relative)
    return attention_read_formula(sources, query, base, gate, eps, relative)


def _stacked_read(
    sources: Sequence[Tensor], query: Tensor, base: Tensor | None, gate: Tensor | None, eps: float, relative: bool
) -> Tensor:
    """:func:`attention_read_formula` in a number of operators that does not grow with that of sources. No product of
    matrices: it may run in a narrower type."""
    dtype = sources[0].dtype if base is None else base.dtype
    stacked = in_type(torch.stack(list(sources), -2), accumulator(dtype))
    query = in_type(query, stacked.dtype)
    logits = (stacked * query).sum(-1) * torch.rsqrt(stacked.square().mean(-1).add_(eps))
    return stacked_sum(stacked, _weights(logits, gate, relative), base, dtype)


def _alike(sources: Sequence[Tensor], base: Tensor | None) -> bool:
    """Whether all have one shape and type, and no source comes twice."""
    first, *others = sources if base is None else (*sources, base)
    twice = any(a is b for i, a in enumerate(sources) for b in sources[:i])
    return not twice and all(s.shape == first.shape and s.dtype == first.dtype for s in others)


_native = Native("attention_read")
_operator = fused("attention_read", attention_read_formula, open_form=_open_read, node=_native)
