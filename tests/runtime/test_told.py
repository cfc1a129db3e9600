"""What was put in the place of rewritten sublayers and blocks since, where more than arguments crosses their border."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import small
from torch import nn

import resfx
from resfx.runtime.told import told_by_keyword

X = small.batch()


class Branch(nn.Module):
    """A sublayer that holds its own norm: what it normalised crosses its border."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.down(torch.tanh(self.up(self.norm(x))))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp = Branch(), Branch()

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


class Net(small.Net):
    def __init__(self):
        super().__init__(blocks=0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 2


def patch(module):
    run = module.forward
    module.forward = lambda x: run(x) * 2


def derive(module):
    class Derived(type(module)):
        def forward(self, x):
            return super().forward(x) * 3

    module.__class__ = Derived


CHANGES = {
    "a patched sublayer": lambda m: patch(m.blocks[1].mlp),
    "a patched block": lambda m: patch(m.blocks[1]),
    "a derived class": lambda m: derive(m.blocks[1].mlp),
    "a wrapped sublayer": lambda m: setattr(m.blocks[1], "mlp", Around(m.blocks[1].mlp)),
    "another sublayer": lambda m: setattr(m.blocks[1], "mlp", Branch()),
    "a linear layer": lambda m: setattr(m.blocks[1], "mlp", nn.Linear(8, 8)),
    "another block": lambda m: m.blocks.__setitem__(1, Block()),
}


def pair(mode):
    torch.manual_seed(0)
    model = Net().eval()
    return copy.deepcopy(model), copy.deepcopy(resfx.rewrite(model, mode, args=(X,)))


@pytest.mark.every(3)
@pytest.mark.parametrize("mode", ["ddl", "attnres", "mhc"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_acts(what, mode):
    pairs = pair(mode)
    for model in pairs:
        torch.manual_seed(3)
        CHANGES[what](model)
    before, new = (model(X) for model in pairs)
    assert torch.equal(before, new)


def test_a_patch_that_is_taken_back():
    before, new = pair("mhc")
    patch(new.blocks[1].mlp)
    new(X)
    del new.blocks[1].mlp.forward
    assert torch.equal(before(X), new(X)) and len(new._resfx_unit.variants) == 2


def test_a_patched_sublayer_compiles():
    _, new = pair("mhc")
    patch(new.blocks[1].mlp)
    want = new(X)
    assert torch.equal(torch.compile(new, backend="eager", fullgraph=True)(X), want)


@pytest.mark.parametrize("forward", [lambda x: x * 3, lambda x, **more: x * 3])
def test_a_forward_that_does_not_run_what_it_replaces(forward):
    _, new = pair("ddl")
    new.blocks[1].mlp.forward = forward
    with pytest.raises(resfx.errors.VariantError, match=r"cannot go on after blocks\.1\.mlp"):
        new(X)


def test_an_inserted_block_is_refused_by_both_places():
    _, new = pair("attnres")
    new.blocks.insert(1, Block())
    with pytest.warns(UserWarning, match="not there when"), pytest.raises(
        resfx.errors.VariantError, match=r"rewritten as 'blocks\.2' as 'blocks\.3'"
    ):  # fmt: skip
        new(X)


class Wrapping(nn.Module):
    """Puts another ``forward`` around that of every class derived from it, as a checkpointing one does."""

    def __init_subclass__(cls):
        run = cls.forward
        cls.forward = (
            (lambda self, *args, **more: run(self, *args, **more)) if cls.opened else lambda self, x: run(self, x)
        )


@pytest.mark.parametrize("mode", ["attnres", "mhc"])
@pytest.mark.parametrize("opened", [True, False])
def test_a_base_class_that_wraps_every_forward(opened, mode):
    _, plain = pair(mode)
    model = Net().eval()
    for i in range(3):
        model.blocks[i].__class__ = type("Wrapped", (Block, Wrapping), {"opened": opened, "forward": Block.forward})
    new = resfx.rewrite(model, mode, args=(X,))
    new.load_state_dict(plain.state_dict())
    assert torch.equal(new(X), plain(X))
    assert all(told_by_keyword(block) is opened for block in new.blocks)
    cls = type(new.blocks[0])
    assert (cls._resfx_forward is cls.forward) is opened  # a glance is enough
