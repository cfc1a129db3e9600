"""The mixers over positions as their papers write them, in float64, and the hosts of ``unrolled.py`` that carry them.

Independent of the library: dense masks spelled out position by position, convolutions as sums of shifted copies,
rotations as complex numbers. Everything is differentiable in every input and parameter.
"""

from __future__ import annotations

import math

import torch
from hosts import HEADS
from hosts.unrolled import MLP, Attention, Pathway, Stream
from torch import Tensor

import resfx

Parameters = dict[str, Tensor]


def windows(t: int, w: int, kind: str, causal: bool) -> list[list[int]]:
    """Which positions each position reads, spelled out."""
    if kind == "chunk":
        return [[j for j in range(t) if j // w == i // w and (j <= i or not causal)] for i in range(t)]
    if causal:
        return [list(range(max(0, i - w + 1), i + 1)) for i in range(t)]
    return [[j for j in range(t) if i - w // 2 <= j <= i + (w - 1) // 2] for i in range(t)]


def normed(p: Parameters, h: Tensor, eps: float) -> Tensor:
    """LayerNorm where there is a bias, root-mean-square norm where there is a weight alone."""
    if "norm.weight" not in p:
        return h
    if "norm.bias" in p:
        h = h - h.mean(-1, keepdim=True)
    h = h / (h.square().mean(-1, keepdim=True) + eps).sqrt() * p["norm.weight"]
    return h + p["norm.bias"] if "norm.bias" in p else h


def turned(x: Tensor) -> Tensor:
    """Rotary positions of ``(batch, positions, heads, features)``: pairs of features as complex numbers, turned."""
    half = x.shape[-1] // 2
    speed = 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None, None] * speed
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def short_swa(p: Parameters, h: Tensor, mask: Tensor | None, causal: bool, config: resfx.ShortSWA, eps: float = 0.0):
    """``W_O softmax(q k / sqrt(d_k)) v`` over each position's window; a position that may read nothing gets zeros."""
    b, t, d = h.shape
    c, heads = normed(p, h, eps), config.heads or HEADS
    size = config.head_dim or d // heads
    q, k, v = ((c @ p[f"{n}.weight"].T).view(b, t, heads, size) for n in "qkv")
    if config.rope:
        q, k = turned(q), turned(k)
    rows = []
    for i, window in enumerate(windows(t, config.window, config.kind, causal)):
        weights = (torch.einsum("bhe,bjhe->bhj", q[:, i], k[:, window]) / math.sqrt(size)).exp()
        if mask is not None:
            weights = torch.where(mask[:, None, window].bool(), weights, 0)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)
        rows.append(torch.einsum("bhj,bjhe->bhe", weights, v[:, window]).flatten(1))
    return torch.stack(rows, 1) @ p["o.weight"].T


def convolved(p: Parameters, h: Tensor, mask: Tensor | None, causal: bool, config: resfx.Canon | resfx.ShortConv):
    """``h + act(sum_s w_s h_{t-s} + b)`` per channel, or without ``h +``. The last of a causal kernel's taps is w_0."""
    x = h if mask is None else h * mask[..., None]
    kernel, t, mixed = config.kernel, h.shape[1], torch.zeros_like(h)
    before = kernel - 1 if causal else kernel // 2
    for s in range(kernel):
        shift = torch.zeros(t, t, dtype=h.dtype)
        for i in range(t):
            if 0 <= i - before + s < t:
                shift[i, i - before + s] = 1
        mixed = mixed + (shift @ x) * p["weight"][:, s]
    mixed = mixed + p["bias"] if "bias" in p else mixed
    mixed = mixed / (1 + (-mixed).exp()) if config.activation == "silu" else mixed
    return h + mixed if config.residual else mixed


def mixer(parameters: Parameters, key: str, owner: str, label: str) -> Parameters | None:
    """The parameters of the mixer called ``label`` among those of a branch's owner, if it has one."""
    found: Parameters = {}
    for name, value in parameters.items():
        rest = name.removeprefix(f"resfx.{key}.{owner}.")
        place, _, leaf = rest.partition(".")
        if rest != name and place.rpartition("_")[0] == label:
            found[leaf] = value
    return found or None


def pathway(name: str, config: resfx.Method, parameters: Parameters) -> Pathway:
    """How a host's streams run with a method's mixers, whose parameters carry the names the library gave them."""
    return lambda stream, x: _Carried(name, config, parameters, stream).run(x)


class _Carried:
    def __init__(self, host: str, config: resfx.Method, parameters: Parameters, stream: Stream) -> None:
        self.host, self.config, self.parameters, self.stream = host, config, parameters, stream
        attentions = [b for block in stream.blocks for b in block if isinstance(b, Attention)]
        self.causal = attentions[0].causal

    def run(self, x: Tensor) -> Tensor:
        for block in self.stream.blocks:
            if self.stream.parallel:
                x = self.before(block[0], x)
                x = x + sum(self.branch(b, x) for b in block)
                continue
            for branch in block:
                x = self.before(branch, x)
                x = x + self.branch(branch, x)
                x = x if branch.after is None else branch.after(x)
        return x

    def before(self, branch: Attention | MLP, x: Tensor) -> Tensor:
        """A sublayer of its own before each self-attention: ``S = H + ShortSWA(Norm(H))``."""
        residual = isinstance(self.config, resfx.ShortSWA) and self.config.placement == "residual"
        if not residual or branch.kind != "attention" or branch.cross:
            return x
        eps = getattr(branch.norm, "eps", 0.0)
        return x + short_swa(self.at(branch, "swa"), x, self.stream.padding, self.causal, self.config, eps)

    def branch(self, branch: Attention | MLP, x: Tensor) -> Tensor:
        if isinstance(branch, Attention):
            return branch(x) if branch.cross else self.attention(branch, x)
        points = self.config.at if isinstance(self.config, resfx.Canon) else ""
        h = branch.open(x)
        h = self.conv(self.at(branch, "c"), h) if "C" in points else h
        first = [f(h) for f in branch.first]
        if "D" in points:
            first = [self.conv(self.at(branch, f"d{i}"), z) for i, z in enumerate(first)]
        return branch.second(*first)

    def attention(self, branch: Attention, x: Tensor) -> Tensor:
        config, h, convolved_at = self.config, branch.open(x), ""
        if isinstance(config, resfx.ShortSWA) and config.placement == "branch":
            mixed = short_swa(self.at(branch, "a"), h, self.stream.padding, self.causal, config)
            h = h + mixed if config.start == "preserve" else mixed
        if isinstance(config, resfx.Canon):
            h = self.conv(self.at(branch, "a"), h) if "A" in config.at else h
            convolved_at = "qkv" if "B" in config.at else ""
        if isinstance(config, resfx.ShortConv):
            convolved_at = config.on
        q, k, v = (self.projection(branch, n, p(h), convolved_at) for n, p in zip("qkv", branch.project, strict=True))
        return branch.attend(q, k, v)

    def projection(self, branch: Attention, name: str, z: Tensor, convolved_at: str) -> Tensor:
        if name not in convolved_at:
            return z
        fused = mixer(self.parameters, self.config.name, branch.owner, "qkv")
        if fused is None:
            return self.conv(self.at(branch, name), z)
        return self.conv({n: _rows(w, self.host, "qkv".index(name)) for n, w in fused.items()}, z)

    def at(self, branch: Attention | MLP, label: str) -> Parameters:
        found = mixer(self.parameters, self.config.name, branch.owner, label)
        assert found is not None, f"no mixer {label} at {branch.owner}"
        return found

    def conv(self, p: Parameters, h: Tensor) -> Tensor:
        return convolved(p, h, self.stream.padding, self.causal, self.config)


def _rows(w: Tensor, host: str, at: int) -> Tensor:
    """The channels of q, k or v in a fused projection: side by side, or within each head (GPT-NeoX)."""
    return w.unflatten(0, (HEADS, 3, -1))[:, at].flatten(0, 1) if host == "gpt_neox" else w.chunk(3)[at]
