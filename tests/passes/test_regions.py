"""Regions of a forward in which gradients are off, or autocast is on, end where they ended."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import resfx


class Scaled(nn.Module):
    """A block whose branch is divided by a number that no gradient goes through, or that is computed in bfloat16."""

    def __init__(self, region) -> None:
        super().__init__()
        self.norm, self.linear, self.region = nn.LayerNorm(8), nn.Linear(8, 8), region

    def forward(self, x):
        with self.region():
            scale = (x @ x.transpose(-2, -1)).abs().mean(-1, keepdim=True) + 1
        return x + self.linear(self.norm(x)) / scale


@pytest.mark.parametrize("region", [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["grad", "cast"])
def test_a_region_of_a_rewritten_module_ends(region):
    torch.manual_seed(0)
    model, x = nn.Sequential(Scaled(region), Scaled(region)), torch.randn(2, 3, 8)
    new = resfx.rewrite(model, "ddl", args=(x,))
    want = torch.autograd.grad(model(x).sum(), model.parameters())
    got = torch.autograd.grad(new(x).sum(), [p for n, p in new.named_parameters() if not n.startswith("resfx.")])
    assert torch.equal(new(x), model(x))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
