"""Block AttnRes in two phases (arXiv 2603.15031, Algorithm 1): finished blocks once for many reads, then the rest.

All reads inside a block have the finished blocks as sources, and their queries are parameters: phase one reads these
sources once for all of them. What is left to each read is the unfinished block's sum, merged by the running softmax.
A read then moves the same few tensors whatever the depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resfx.ops.inductor import per_row
from resfx.ops.register import accumulator, plus

from .grouped import score

Ahead = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""Of the finished blocks, for one read, in float32 for half types: ``sum_j e^(l_j - m) b_j (..., d)``; ``m`` and
``sum_j e^(l_j - m)``, both ``(..., 1)``; how many they are, ``()``; and for relative reads ``-sum_j b_j (..., d)``.
(Their number is a tensor so that the code of a read is the same in every block.)"""


def inter_block(sources: Sequence[Tensor], queries: Sequence[Tensor], eps: float, relative: bool) -> list[Ahead]:
    """Phase one: every query over the sources, ``l_j = query . RMSNorm(b_j)``.

    Args:
        sources: tensors ``(..., d)``.
        queries: tensors ``(d,)``, one per read, with the gain of the norm.
        eps: of the norm.
        relative: also return the negative sum of the sources.
    """
    wide = accumulator(sources[0].dtype)
    rows = [s.to(wide) for s in sources]
    table = torch.stack(list(queries)).to(wide)
    logits = [_scores(s, table, eps) for s in rows]
    count = logits[0].new_full((), len(rows))
    if len(rows) == 1:  # its share is one, whatever the query: nothing to write
        lack = -rows[0] if relative else None
        return [(rows[0], top, torch.ones_like(top), count, lack) for top in logits[0].split(1, -1)]
    tops = torch.stack(logits).detach().amax(0)
    shares = [per_row(torch.exp(z - tops), z) for z in logits]
    lack = None
    if relative:
        lack = -plus(rows)  # negative: its gradient is then the read's own, no new tensor
    found: list[Ahead] = []
    for i, top, mass in zip(range(len(queries)), tops.split(1, -1), plus(shares).split(1, -1), strict=True):
        total = plus([e[..., i : i + 1] * s for e, s in zip(shares, rows, strict=True)])
        found.append((total, top, mass, count, lack))
    return found


def _scores(source: Tensor, table: Tensor, eps: float) -> Tensor:
    """``table @ RMSNorm(source)``, ``(..., queries)``."""
    scale = torch.rsqrt((source * source).mean(-1, keepdim=True) + eps)
    if not torch.compiler.is_dynamo_compiling():
        with torch.autocast(source.device.type, enabled=False):
            return source @ table.T * scale
    return torch.cat([(source * query).sum(-1, keepdim=True) for query in table], -1) * scale


def intra_block(ahead: Ahead, partial: Tensor | None, query: Tensor, base: Tensor | None, eps: float) -> Tensor:
    """Phase two: the read that :func:`resfx.ops.attention_read.formula.attention_read` gives of all sources at once.

    Args:
        ahead: of the finished blocks.
        partial: the sum of the unfinished block, ``(..., d)``, where it has one.
        query: ``(d,)``, with the gain of the norm.
        base: ``(..., d)``; with it the ``n`` weights are ``n a_j - 1``, exactly zero where all scores are equal.

    Returns:
        ``(..., d)`` in the type of the base; without one, of ``ahead``.
    """
    total, top, mass, count, lack = ahead
    if partial is not None:
        p = partial.to(total.dtype)
        logit, _ = score(p, query.to(p.dtype), eps)
        higher = torch.maximum(top, logit).detach()
        e, shrink = per_row(torch.exp(logit - higher), logit), per_row(torch.exp(top - higher), logit)
        total, mass, count = total * shrink + e * p, mass * shrink + e, count + 1
        lack = None if lack is None else lack - p
    if base is None or lack is None:
        return total * per_row(1 / mass, top)
    # A tensor over a tensor: n / n is one exactly, a number over a tensor is a reciprocal.
    return base + (total * per_row(count / mass, top) + lack).to(base.dtype)
