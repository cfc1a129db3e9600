"""Forms of the methods with a widened stream, and what their tests share."""

from __future__ import annotations

import pytest
import torch
from hosts import HOSTS, WIDTH
from torch import nn

from resfx import DDL, MHC, AltUp, HyperConnections
from resfx.passes.check import tensors_of

CC, TC = DDL(value_channels=4), DDL(value_channels=4, compress="token")
METHODS = {
    "mhc": MHC(),
    "hyper": HyperConnections(),
    "channel": CC,
    "token": TC,
    "three": MHC(n=3, readout="learned", sinkhorn_iterations=5, sinkhorn_newton=0),
    "static": HyperConnections(n=3, dynamic=False),
    "linear": HyperConnections(n=2, tanh=False, norm="rms", readout="learned"),
    "routed": AltUp.gemma3n(n=3),
    "erase": DDL(value_channels=2, preserve="erase", share_compressor="sublayer", embed_conv=False),
    "write": DDL(value_channels=3, write_only=True),
    "repository": DDL.repository(value_channels=4, compress="token", embed_conv=False),
}
ALL = [(m, h.name) for m in METHODS for h in HOSTS]


def both(default, everything):
    """The default cases now; all the others in the matrix."""
    rest = [c for c in everything if c not in default]
    return [pytest.param(*c, id="-".join(c)) for c in default] + [
        pytest.param(*c, id="-".join(c), marks=pytest.mark.matrix) for c in rest
    ]


def equal(a, b) -> bool:
    left, right = tensors_of(a), tensors_of(b)
    return len(left) == len(right) > 0 and all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def loss_of(output):
    floats = [t for t in tensors_of(output) if t.is_floating_point() and t.requires_grad]
    return sum((t * torch.cos(torch.arange(t.numel()) + 1.0).view(t.shape).to(t)).sum() for t in floats)


class Mlp(nn.Module):
    """Parallel branches ``(x + f) + g`` through one norm or two, or one branch; a scaled shortcut."""

    def __init__(self, parallel, shared=True, scale=1.0):
        super().__init__()
        self.parallel, self.scale = parallel, scale
        self.norm = nn.LayerNorm(WIDTH)
        self.second = self.norm if shared else nn.LayerNorm(WIDTH)
        self.branch = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))
        self.other = nn.Sequential(nn.Linear(WIDTH, 48), nn.Tanh(), nn.Linear(48, WIDTH))

    def forward(self, x):
        if self.parallel:
            c = self.norm(x)
            return (x + self.branch(c)) + self.other(c if self.second is self.norm else self.second(x))
        x = x if self.scale == 1 else x * self.scale
        return x + self.branch(self.norm(x))
