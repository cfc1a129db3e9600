"""A tiny decoder whose weights are multiples of 1/16: the same on every machine, so that a committed save fits it."""

from __future__ import annotations

import torch
from torch import nn

WIDTH, VOCAB = 8, 11


class Layer(nn.Module):
    """Attention and MLP, pre-norm, both adds in one ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.before(x)
        q, k, v = (p(h).unflatten(-1, (2, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.down(torch.tanh(self.up(self.between(x))))


class ExactDecoder(nn.Module):
    """Two layers between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def exact_decoder() -> ExactDecoder:
    """The model, in eval mode; no random number is drawn for its weights."""
    model = ExactDecoder().eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            steps = torch.arange(parameter.numel()) * (2 * number + 3) % 17 - 8
            parameter.copy_((steps / 16).view_as(parameter))
            if name.endswith(("before.weight", "between.weight", "norm.weight")):
                parameter.add_(1)
    return model


def exact_ids() -> torch.Tensor:
    """``(2, 5)`` tokens."""
    return torch.arange(10).view(2, 5) * 7 % VOCAB
