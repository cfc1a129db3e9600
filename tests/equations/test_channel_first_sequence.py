"""Mixers over positions where an attention reads a stream with its features in dimension 1: as with these last."""

from __future__ import annotations

import pytest
import torch
from hosts.channel_first import AllNorm, Block, Turned
from hosts.made import randomise
from torch import Tensor, nn

import resfx

WIDTH, HEADS = 8, 2


class Attend(nn.Module):
    """The attention of a U-net: rows and columns become positions, and an image again."""

    def __init__(self, normed: bool, last: bool) -> None:
        super().__init__()
        self.last = last
        self.norm = (AllNorm if last else nn.GroupNorm)(1, WIDTH) if normed else nn.Identity()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        rows = h.flatten(1, 2) if self.last else h.flatten(2).transpose(1, 2)
        q, k, v = (p(rows).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        out = self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + (out.view_as(x) if self.last else out.transpose(1, 2).reshape(x.shape))


def both(normed: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    """The host, the same with its features last, and an image of 6 x 5."""
    made = []
    for last in (False, True):
        torch.manual_seed(0)
        stem = nn.Conv2d(3, WIDTH, 1)
        blocks = [Attend(normed, last), Block("pre", WIDTH, last), Attend(normed, last)]
        made.append(nn.Sequential(Turned(stem) if last else stem, *blocks).double().eval())
    return *made, torch.randn(2, 3, 6, 5, dtype=torch.float64)


METHODS = {
    "branch": (resfx.ShortSWA(window=4, placement="branch"), True),
    "residual": (resfx.ShortSWA(window=4), False),
    "canon": (resfx.Canon(), True),
    "conv": (resfx.ShortConv(), True),
    "values": (resfx.ValueResidual(), True),
    "lime": (resfx.LIMe(), True),
}


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.matrix] if n in ("conv", "values") else []) for n in METHODS]
)
def test_as_with_the_features_last(name):
    method, normed = METHODS[name]
    first, last, x = both(normed)
    torch.manual_seed(0)
    new = resfx.rewrite(first, method, args=(x,))
    torch.manual_seed(0)
    turned = resfx.rewrite(last, method, args=(x.movedim(1, -1),), check=False)
    assert torch.equal(new(x), first(x))
    for model in (new, turned):
        randomise(model, 0.3)
    mine, theirs = new.new_parameters(), turned.new_parameters()
    assert {n: p.shape for n, p in mine.items()} == {n: p.shape for n, p in theirs.items()} != {}
    got, want = new(x), turned(x.movedim(1, -1)).movedim(-1, 1)
    assert (got - first(x)).abs().max() > 1e-4, "the rewrite must act"
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    weight = torch.cos(torch.arange(got.numel(), dtype=got.dtype)).view_as(got)
    ours, other = (torch.autograd.grad((y * weight).sum(), list(p.values())) for y, p in ((got, mine), (want, theirs)))
    for a, b in zip(ours, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_a_convolutional_stream_has_no_positions_to_mix():
    blocks = nn.Sequential(nn.Conv2d(3, WIDTH, 1), Block("pre", WIDTH, False), Block("pre", WIDTH, False)).eval()
    with pytest.raises(resfx.errors.NoSitesError, match="no attention in this branch"):
        resfx.rewrite(blocks, "short_swa", args=(torch.randn(2, 3, 6, 5),))
