"""Blocks whose code the call around them chose: it was made for the arguments that the model passes, and says so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import resfx

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
AROUND = ["attnres", "mhc", "depth_read"]
ALONE = ["ddl", "denseformer", "lambdas"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x, scale=1.0, *, mask=None):
        branch = self.down(torch.tanh(self.up(self.norm(x)))) * scale
        return x + (branch if mask is None else branch * mask)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x, mask=None):
        x = self.inp(x)
        for block in self.blocks:
            x = block(x, 2.0, mask=mask)
        return self.out(x)


class Wrapped(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, scale, **others):
        return self.block(x, scale / 2, **others)


def halved(module, args, kwargs):
    return (args[0], 1.0), kwargs


def masked(module, args, kwargs):
    return args, kwargs | {"mask": torch.full((8,), 0.5)}


def doubled(module, args, kwargs):
    return (args[0] * 2, *args[1:]), kwargs


CHANGES = {
    "a number": lambda m: m.blocks[1].register_forward_pre_hook(halved, with_kwargs=True),
    "a tensor where there was none": lambda m: m.blocks[1].register_forward_pre_hook(masked, with_kwargs=True),
    "a number, in a wrapper": lambda m: m.blocks.__setitem__(1, Wrapped(m.blocks[1])),
}


def pair(mode):
    torch.manual_seed(0)
    model = Net().eval()
    return model, copy.deepcopy(resfx.rewrite(model, mode, args=(X,)))


@pytest.mark.every(2)
@pytest.mark.parametrize("mode", [*AROUND, *ALONE])
@pytest.mark.parametrize("what", CHANGES)
def test_what_is_changed_on_the_way_acts_or_is_refused(what, mode):
    model, new = pair(mode)
    for m in (model, new):
        CHANGES[what](m)
    if mode in ALONE:
        assert torch.equal(model(X), new(X))
        return
    name = "mask" if "tensor" in what else "scale"
    with pytest.raises(resfx.errors.VariantError, match=f"cannot run blocks.1 with another argument '{name}'"):
        new(X)


@pytest.mark.parametrize("mode", [*AROUND, *ALONE])
def test_tensors_may_be_changed_on_the_way_and_hooks_taken_off(mode):
    model, new = pair(mode)
    for changed in (doubled, masked):
        hooks = [m.blocks[1].register_forward_pre_hook(changed, with_kwargs=True) for m in (model, new)]
        given = (X, torch.ones(8))
        assert torch.equal(model(*given), new(*given))
        for hook in hooks:
            hook.remove()
    assert torch.equal(model(X), new(X))


@pytest.mark.parametrize(("mode", "writes"), [*((m, True) for m in (*AROUND, "ddl")), ("denseformer", False)])
def test_the_code_of_a_block_is_told_wherever_it_comes_from(mode, writes):
    new = pair(mode)[1]
    assert ("self.norm(" in resfx.of(new).code("blocks.1")) == writes, "between its blocks alone"
    assert resfx.of(new).code("blocks.1.norm") == ""
