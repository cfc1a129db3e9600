"""What tests of the export share: a small model to rewrite and export, and what is read and run of a file."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import torch
from hosts.made import randomise
from torch import nn

import resfx
from resfx.export import session


class Sublayer(nn.Module):
    """A pre-norm MLP that adds, plainly or with a factor."""

    def __init__(self, width: int = 16, alpha: float = 1.0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width)
        self.drop, self.alpha = nn.Dropout(0.5), alpha

    def forward(self, x):
        f = self.drop(self.down(torch.relu(self.up(self.norm(x)))))
        return x + f if self.alpha == 1 else torch.add(x, f, alpha=self.alpha)


class Stack(nn.Module):
    """Two sublayers; the second may scale what it adds."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Sublayer(), Sublayer(alpha=alpha)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@functools.cache
def plain() -> nn.Module:
    """A rewritten model that no test changes for good."""
    return stack()


def stack(mode="ddl", **changes):
    """A model rewritten anew, its new parameters off their start."""
    new = resfx.rewrite(Stack(**changes).eval(), mode, (batch(),))
    randomise(new)
    return new


def batch(rows: int = 3, length: int = 5) -> torch.Tensor:
    """An input of the stack."""
    return torch.randn(rows, length, 16, generator=torch.Generator().manual_seed(0))


def fused_nodes(path) -> list[onnx.NodeProto]:
    """The nodes of this library's operators in a file."""
    return [n for n in onnx.load(path, load_external_data=False).graph.node if n.domain == "resfx"]


def run(path, feeds: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """Every output of a file in ONNX Runtime."""
    return session(path).run(None, {n: v.numpy() for n, v in feeds.items()})
