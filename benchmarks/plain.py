"""The operators as a paper or a first version writes them, in plain torch: what the library's forms are timed against.

Each takes the arguments of the library's function of the same kind, with tensors where that has options.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def stacked_read(sources: Sequence[Tensor], query: Tensor) -> Tensor:
    """A softmax read over sources that are stacked first, scores by RMSNorm."""
    values = torch.stack(list(sources))
    weights = torch.einsum("d,n...d->n...", query, F.rms_norm(values, values.shape[-1:], eps=1e-6)).softmax(0)
    return torch.einsum("n...,n...d->...d", weights, values)


def stacked_sum(sources: Sequence[Tensor], weights: Tensor) -> Tensor:
    """A weighted sum of sources that are stacked first."""
    return torch.einsum("n,n...d->...d", weights, torch.stack(list(sources)))


def combined(state: Tensor, weights: Tensor) -> Tensor:
    """Channels to one vector, weights ``(rows, n)``."""
    return torch.einsum("rn,rnd->rd", weights, state)


def mixed(state: Tensor, f: Tensor, write: Tensor, matrix: Tensor) -> Tensor:
    """Channels mixed, and one vector written to all."""
    return torch.einsum("rij,rjd->rid", matrix, state) + torch.einsum("rn,rd->rnd", write, f)


def wide_delta(state: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """The delta shortcut on every channel, as far as ``mix`` says."""
    k = F.normalize(f, dim=-1)
    published = state + beta.unsqueeze(-1) * torch.einsum("rn,rd->rnd", v - torch.einsum("rd,rnd->rn", k, state), k)
    plain = state + f.unsqueeze(-2)
    return plain + mix * (published - plain)


def delta(x: Tensor, f: Tensor, beta: Tensor, v: Tensor, mix: Tensor) -> Tensor:
    """The delta shortcut, as far as ``mix`` says."""
    k = F.normalize(f, dim=-1)
    published = x + beta * (v - (k * x).sum(-1, keepdim=True)) * k
    return x + f + mix * (published - x - f)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """The causal short convolution ``(batch, T, d)`` by ``conv1d``."""
    taps = weight.shape[-1]
    padded = F.pad(x.transpose(1, 2), (taps - 1, 0))
    return F.conv1d(padded, weight.unsqueeze(1), groups=x.shape[-1]).transpose(1, 2)


def sinkhorn_rounds(logits: Tensor, rounds: int = 20) -> Tensor:
    """Sinkhorn-Knopp, rows last."""
    matrix = logits.exp()
    for _ in range(rounds):
        matrix = matrix / matrix.sum(-2, keepdim=True)
        matrix = matrix / matrix.sum(-1, keepdim=True)
    return matrix
