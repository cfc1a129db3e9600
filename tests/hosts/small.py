"""The smallest net with residual adds, for tests of everything around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.up, self.act, self.down = (
            nn.LayerNorm(width), nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def body(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


def net(cls: type[nn.Module] = Net) -> nn.Module:
    """A net in eval mode, the same every time."""
    torch.manual_seed(0)
    return cls().eval()


def batch(rows: int = 3, tokens: int = 5, width: int = 8) -> Tensor:
    """An input for it, the same every time."""
    return torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(1))


def at_once(call: Callable[[Any], Any], arguments: Iterable[Any]) -> None:
    """Calls in a thread each; returns when all have ended."""
    threads = [threading.Thread(target=call, args=(given,)) for given in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
