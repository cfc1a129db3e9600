"""What a rewritten block's own Python reads of its module, of configs and of arguments may change: it is read anew."""

from __future__ import annotations

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import resfx

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))


class Config:
    def __init__(self, alpha):
        self.alpha = alpha


class Slots:
    __slots__ = ("alpha",)

    def __init__(self, alpha):
        self.alpha = alpha


class Named(dict):
    pass


class Gate:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * x


class Block(nn.Module):
    beta = 1.0

    def __init__(self, config):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        self.config, self._inner, self.space = config, Config(1.0), types.SimpleNamespace(alpha=1.0)
        self.act, self.gate, self.named = F.gelu, Gate(1.0), Named(alpha=1.0)

    def forward(self, x, scale):
        scale = scale["alpha"] if isinstance(scale, dict) else scale.alpha
        scale = scale * self.config.alpha * self.beta * self._inner.alpha * self.space.alpha * self.named["alpha"]
        return x + scale * self.gate(self.act(self.linear(self.norm(x))))


class Net(nn.Module):
    def __init__(self, at_root):
        super().__init__()
        config = Config(1.0)
        if at_root:
            self.config = config
        self.blocks, self.out = nn.ModuleList(Block(config) for _ in range(3)), nn.Linear(8, 8)

    def forward(self, x, scale):
        for block in self.blocks:
            x = block(x, scale)
        return self.out(x)


CHANGES = {
    "a config of all": lambda block, to: setattr(block.config, "alpha", to),
    "another config": lambda block, to: setattr(block, "config", Config(to)),
    "a config of another class": lambda block, to: setattr(block, "config", types.SimpleNamespace(alpha=to)),
    "a private config": lambda block, to: setattr(block._inner, "alpha", to),
    "a namespace": lambda block, to: setattr(block.space, "alpha", to),
    "a dict of a class of its own": lambda block, to: block.named.update(alpha=to),
    "an attribute of the class": lambda block, to: setattr(block, "beta", to),
    "a function": lambda block, to: setattr(block, "act", F.relu),
    "an attribute of a function object": lambda block, to: setattr(block.gate, "scale", to),
    "another function object": lambda block, to: setattr(block, "gate", Gate(to)),
}


@pytest.mark.parametrize("at_root", [True, False], ids=["root too", "blocks alone"])
@pytest.mark.parametrize("mode", ["ddl", "attnres"])
def test_a_change_acts(mode, at_root):
    torch.manual_seed(0)
    model = Net(at_root)
    new = resfx.rewrite(copy.deepcopy(model), mode, args=(X, Config(0.5)))
    for number, change in enumerate(CHANGES.values()):  # each must act on what the others left
        before = model(X, Config(0.5))
        for tree in (model, new):
            change(tree.blocks[1], 2.0 + number)
        assert not torch.equal(model(X, Config(0.5)), before)
        assert torch.equal(new(X, Config(0.5)), model(X, Config(0.5)))
        assert torch.equal(copy.deepcopy(new)(X, Config(0.5)), model(X, Config(0.5)))


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
@pytest.mark.parametrize("cls", [Config, Slots, Named, types.SimpleNamespace, dict], ids=lambda c: c.__name__)
def test_arguments_are_compared_by_what_they_hold(cls, mode):
    model = Net(True)
    one, two = [cls(a) if cls in (Config, Slots) else cls(alpha=a) for a in (0.5, 2.0)]
    new = resfx.rewrite(model, mode, args=(X, one))
    for given in (two, one):
        assert torch.equal(new(X, given), model(X, given))
    assert not torch.equal(new(X, one), new(X, two))


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.norm, self.linear, self.scale = nn.LayerNorm(8), nn.Linear(8, 8), scale

    def forward(self, x):
        return x + self.scale * self.linear(self.norm(x))


def test_blocks_that_share_a_plain_tensor_stay_modules():
    scale = torch.tensor(0.5)
    model = nn.Sequential(*[Scaled(scale) for _ in range(3)], nn.Linear(8, 8))
    new = resfx.rewrite(copy.deepcopy(model), "ddl", args=(X,))
    for tree in (model, new):
        tree[1].register_forward_hook(lambda module, given, out: out * 2)
        tree[2].scale = torch.tensor(3.0)
    assert torch.equal(new(X), model(X))


class Averaging(Scaled):
    """Keeps a running mean in a tensor that is no buffer."""

    def __init__(self):
        super().__init__(1.0)
        self.mean = torch.zeros(8)

    def forward(self, x):
        branch = self.linear(self.norm(x))
        with torch.no_grad():
            self.mean.mul_(0.5).add_(branch.mean((0, 1)))
        return x + branch + self.mean


def test_state_in_plain_tensors_is_each_models_own():
    torch.manual_seed(0)
    model = nn.Sequential(Averaging(), Averaging(), nn.Linear(8, 8))
    before = copy.deepcopy(model)
    resfx.scan(model, args=(X,))
    new = resfx.rewrite(model, "ddl", args=(X,))
    for _ in range(3):
        assert torch.equal(new(X), before(X))
    assert torch.equal(new[1].mean, before[1].mean) and not model[0].mean.any()


def doubled(x):
    return x * 2


def test_a_function_in_the_place_of_a_forward_fits():
    model = nn.Sequential(Scaled(1.0), Scaled(1.0), nn.Linear(8, 8))
    model[0].linear.forward = doubled
    new = resfx.rewrite(model, "ddl", args=(X,))
    assert torch.equal(new(X), model(X))


def test_compiling_a_layer_asks_for_no_capture():
    model = nn.Sequential(*[Scaled(1.0) for _ in range(2)], nn.Linear(8, 8))
    new = resfx.rewrite(model, "ddl", args=(X,))
    before = resfx.of(new).variants
    new[0].linear.compile(backend="eager")
    assert torch.equal(new(X), model(X))
    assert resfx.of(new).variants == before


class Lists(nn.Module):
    """Blocks in a list of lists, or in a ``Sequential`` that is gone through or called."""

    def __init__(self, kind):
        super().__init__()
        blocks = [Block(Config(1.0)) for _ in range(3)]
        for block in blocks:
            block.forward = types.MethodType(lambda self, x: x + self.linear(self.norm(x)), block)
        self.kind, self.out = kind, nn.Linear(8, 8)
        self.blocks = nn.Sequential(*blocks) if kind != "nested" else nn.ModuleList([nn.ModuleList(blocks)])

    def forward(self, x):
        if self.kind == "called":
            return self.out(self.blocks(x))
        for block in self.blocks[0] if self.kind == "nested" else self.blocks:
            x = block(x)
        return self.out(x)


@pytest.mark.parametrize("kind", ["nested", "gone through", "called"])
@pytest.mark.parametrize("mode", ["ddl", "denseformer"])
def test_a_block_less_is_seen(mode, kind):
    model = Lists(kind)
    new = resfx.rewrite(copy.deepcopy(model), mode, args=(X,))
    for tree in (model, new):
        del (tree.blocks[0] if kind == "nested" else tree.blocks)[1]
    try:
        assert torch.equal(new(X), model(X))
    except resfx.errors.ResfxError as error:
        assert mode == "denseformer" and "no read was made for this place" in str(error)
