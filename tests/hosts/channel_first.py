"""Hosts that keep their features in dimension 1, and the same with every state turned by hand so that they are last."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HOSTS = {"pre": 2, "relu": 2, "post": 2, "tokens": 1}  # axes of a place


class Turned(nn.Module):
    """A layer for features in front, applied to features last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(-1, 1)).movedim(1, -1)


class LastNorm(nn.LayerNorm):
    """A layer norm over the features of ``(batch, d, ...)``, as a ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class AllNorm(nn.GroupNorm):
    """``GroupNorm(1, d)`` for features last."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[1:]) * self.weight + self.bias


class Block(nn.Module):
    """``x + conv(gelu(conv(x)))``: ``"pre"`` with a norm before it, ``"relu"`` with an activation and ``"post"`` with a
    norm behind the add."""

    def __init__(self, kind: str, width: int, last: bool) -> None:
        super().__init__()
        conv = nn.Conv1d if HOSTS[kind] == 1 else nn.Conv2d
        turn = Turned if last else lambda layer: layer
        self.norm = (AllNorm if last else nn.GroupNorm)(1, width) if kind == "pre" else nn.Identity()
        self.behind = {"relu": nn.ReLU(), "post": turn(LastNorm(width))}.get(kind, nn.Identity())
        body = (nn.BatchNorm2d(width), nn.GELU()) if kind == "relu" else (nn.GELU(),)
        self.branch = turn(nn.Sequential(conv(width, width, 3, padding=1), *body, conv(width, width, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(x + self.branch(self.norm(x)))


class Stages(nn.Module):
    """Two stages of blocks, the second half as large and half as wide again; a classifier over the mean."""

    def __init__(self, kind: str, last: bool = False, blocks: int = 2) -> None:
        super().__init__()
        conv = nn.Conv1d if HOSTS[kind] == 1 else nn.Conv2d
        turn = Turned if last else lambda layer: layer
        self.last = last
        self.stem, self.down = turn(conv(3, 8, 1)), turn(conv(8, 12, 2, stride=2))
        self.first = nn.Sequential(*(Block(kind, 8, last) for _ in range(blocks)))
        self.second = nn.Sequential(*(Block(kind, 12, last) for _ in range(2)))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1) if self.last else x
        x = self.second(self.down(self.first(self.stem(x))))
        return self.head(x.flatten(1, -2).mean(1) if self.last else x.flatten(2).mean(-1))


def both(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Stages, Stages, Tensor]:
    """A channel-first host, the same with its features last, and an input."""
    torch.manual_seed(0)
    first, last = (Stages(kind, last).to(dtype).eval() for last in (False, True))
    weights = [p + 0.2 * torch.randn_like(p) for p in first.parameters()]
    with torch.no_grad():
        for model in (first, last):
            for parameter, value in zip(model.parameters(), weights, strict=True):
                parameter.copy_(value)
    size = (2, 3, 6) if HOSTS[kind] == 1 else (2, 3, 6, 4)
    return first, last, torch.randn(size, dtype=dtype)
