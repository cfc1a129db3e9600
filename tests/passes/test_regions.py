"""Regions of a forward in which gradients are off, or autocast is on, end where they ended."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import resfx

REGIONS = [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)]


class Scaled(nn.Module):
    """A block whose branch is divided by a number that no gradient goes through, or that is computed in bfloat16."""

    def __init__(self, region) -> None:
        super().__init__()
        self.norm, self.linear, self.region = nn.LayerNorm(8), nn.Linear(8, 8), region

    def forward(self, x):
        with self.region():
            scale = (x @ x.transpose(-2, -1)).abs().mean(-1, keepdim=True) + 1
        return x + self.linear(self.norm(x)) / scale


@pytest.mark.parametrize("region", REGIONS, ids=["grad", "cast"])
def test_a_region_of_a_rewritten_module_ends(region):
    torch.manual_seed(0)
    model, x = nn.Sequential(Scaled(region), Scaled(region)), torch.randn(2, 3, 8)
    new = resfx.rewrite(model, "ddl", args=(x,))
    want = torch.autograd.grad(model(x).sum(), model.parameters())
    got = torch.autograd.grad(new(x).sum(), [p for n, p in new.named_parameters() if not n.startswith("resfx.")])
    assert torch.equal(new(x), model(x))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class Inside(Scaled):
    """A block whose branch runs within a region."""

    def forward(self, x):
        with self.region():
            branch = self.linear(self.norm(x))
        return x + branch.to(x.dtype)


@pytest.mark.parametrize("region", REGIONS, ids=["grad", "cast"])
def test_an_error_inside_a_region_ends_it(region):
    model, x = nn.Sequential(Inside(region), nn.Linear(8, 8)), torch.randn(2, 3, 8)
    new = resfx.rewrite(model, "ddl", args=(x,), check=False)
    new[0].linear.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        new(x)
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    assert depth == 1
