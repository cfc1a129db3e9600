"""The routes as their papers write them, in float64, on the hosts of ``unrolled.py``. Independent of the library."""

from __future__ import annotations

import torch
from hosts import HEADS, WIDTH
from hosts.unrolled import Attention, Pathway, Stream
from references.sequence import Parameters, mixer
from torch import Tensor

import resfx

SIZE = WIDTH // HEADS  # features of a head, in all hosts


def value_residual(p: Parameters, config: resfx.ValueResidual, values: list[Tensor]) -> Tensor:
    """``V'_n = sum_i lambda_{n,i} V_i`` over the layers so far; ``values (batch, positions, heads, size)``."""
    preserve, own = config.start == "preserve", values[-1]
    if config.form == "shared":
        return own + p["share"][:, None] * (values[0] - own) if preserve else values[0]
    stack = torch.stack(values if config.form == "dense" else [values[0], own], -1)
    weight = p["weight"] if config.learned else stack.new_tensor([config.first, config.own])
    weight = weight.expand(stack.shape[2], -1)
    if preserve:
        weight = weight + torch.nn.functional.one_hot(torch.tensor(stack.shape[-1] - 1), stack.shape[-1])
    return torch.einsum("bthdn,hn->bthd", stack, weight)


def lime(p: Parameters, config: resfx.LIMe, heads: list[Tensor]) -> Tensor:
    """``sum_{m <= l} sum_h R_{i,(m,h)} K_{m,h}`` for every head ``i``."""
    stack = torch.stack(heads, 2)  # (batch, positions, layers, heads, size)
    router = p["weight"].unflatten(1, stack.shape[2:4])
    mixed = torch.einsum("imh,btmhd->btid", router, stack)
    return heads[-1] + mixed if config.start == "preserve" else mixed


def value_embedding(p: Parameters, config: resfx.ValueEmbedding, v: Tensor, context: Tensor, tokens: Tensor) -> Tensor:
    """``V + 2 sigmoid(W c) E[token]``, or ``a V + b E[token]``."""
    row = torch.nn.functional.one_hot(tokens, len(p["table"])).to(v.dtype) @ p["table"]
    row = row.unflatten(-1, v.shape[-2:])
    if config.gate == "token":
        gate = 2 / (1 + (-context[..., : config.channels] @ p["gate.weight"].T).exp())
        return v + gate[..., None] * row
    return (p["scales"][0] + (config.start == "preserve")) * v + p["scales"][1] * row


def pathway(config: resfx.Method, parameters: Parameters, tokens: dict[str, Tensor]) -> Pathway:
    """How a host's streams run with a route, whose parameters carry the names the library gave them.

    Args:
        tokens: by the name of the stream, what it begins with.
    """
    return lambda stream, x: _Routed(config, parameters, stream, tokens.get(stream.name)).run(x)


class _Routed:
    def __init__(
        self, config: resfx.Method, parameters: Parameters, stream: Stream, tokens: Tensor | None
    ) -> None:  # fmt: skip
        self.config, self.parameters, self.stream, self.tokens = config, parameters, stream, tokens
        self.earlier: list[dict[str, Tensor]] = []

    def run(self, x: Tensor) -> Tensor:
        for block in self.stream.blocks:
            if self.stream.parallel:
                x = x + sum(self.branch(b, x) for b in block)
                continue
            for branch in block:
                x = x + self.branch(branch, x)
                x = x if branch.after is None else branch.after(x)
        return x

    def branch(self, branch, x: Tensor) -> Tensor:
        if not isinstance(branch, Attention) or branch.cross:
            return branch(x)
        context = branch.open(x)
        heads = {n: p(context).unflatten(-1, (-1, SIZE)) for n, p in zip("qkv", branch.project, strict=True)}
        self.earlier.append(heads)
        label = "kv" if isinstance(self.config, resfx.LIMe) else "v"
        p = mixer(self.parameters, self.config.name, branch.owner, label)
        config = self.config
        bare = isinstance(config, resfx.ValueResidual) and (config.form == "shared" or not config.learned)
        if p is not None or (bare and config.start == "published" and len(self.earlier) > 1):
            heads = heads | {n: self.routed(p or {}, n, context) for n in label}
        return branch.attend(*(heads[n].flatten(-2) for n in "qkv"))

    def routed(self, p: Parameters, name: str, context: Tensor) -> Tensor:
        so_far = [layer[name] for layer in self.earlier]
        if isinstance(self.config, resfx.ValueResidual):
            return value_residual(p, self.config, so_far)
        if isinstance(self.config, resfx.LIMe):
            return lime(p, self.config, so_far)
        assert isinstance(self.config, resfx.ValueEmbedding) and self.tokens is not None
        return value_embedding(p, self.config, so_far[-1], context, self.tokens)
