"""Numbers per row of a list of sources ``(..., d)``: what a softmax over them, or a norm of each, needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .chunks import cut, is_cut, run_chunk
from .register import accumulator


def rms_scores(sources: Sequence[Tensor], query: Tensor, eps: float) -> Tensor:
    """``query . RMSNorm(source_j)`` as ``(..., n)``, in float32 for half types: a product and a scale per source."""
    if is_cut(sources):
        return torch.cat([run_chunk(rms_scores, sources[part], query, eps) for part in cut(len(sources))], -1)
    wide = accumulator(sources[0].dtype)
    query = query.to(wide)
    return torch.stack([(s.to(wide) * query).sum(-1) * _inverse_rms(s.to(wide), eps) for s in sources], -1)


def rms_scales(sources: Sequence[Tensor], eps: float) -> Tensor:
    """``1 / rms(source_j)`` as ``(..., n)``, float32 for half types: weights times these weigh normalised sources."""
    if is_cut(sources):
        return torch.cat([run_chunk(rms_scales, sources[part], eps) for part in cut(len(sources))], -1)
    return torch.stack([_inverse_rms(s.to(accumulator(s.dtype)), eps) for s in sources], -1)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt((x * x).mean(-1) + eps)


def relative_softmax(logits: Tensor) -> Tensor:
    """``n softmax(logits)``: exactly 1 everywhere where all ``n`` logits are equal, for every ``n``."""
    e = torch.exp(logits - logits.amax(-1, keepdim=True))
    return e * logits.shape[-1] / e.sum(-1, keepdim=True)  # not n / sum: a number over a tensor is a reciprocal


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """``x / rms(x)`` without gain, in float32 for half types."""
    x = x.to(accumulator(x.dtype))
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
