"""Models that a newcomer brings and that cannot be captured, or only by what they are called with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .small import Net


class Text(nn.Module):
    """Ids in, states out; its loop cannot be traced without an example."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(64, 8), Net()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.table(input_ids)
        for _ in range(1 + len(input_ids) // 1000):
            h = self.body(h)
        return h if attention_mask is None else h * attention_mask.unsqueeze(-1)


class Branch(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return super().forward(x)
        return x


class Numpy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(x.detach().numpy() * 2))


class ItsOwnGenerator(Net):
    def forward(self, x: Tensor) -> Iterator[Tensor]:
        h = self.body(x)
        return (self.out(h) for _ in range(2))


class Collects(Net):
    def forward(self, x: Tensor, states: list[Tensor]) -> Tensor:
        states.append(self.body(x))
        return self.out(states[-1])
