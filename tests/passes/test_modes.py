"""Modules that a forward puts into training or evaluation mode are in that mode in generated code, call by call."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import resfx
from resfx.errors import CaptureError, VariantError

X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.drop = nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.linear(self.norm(x)))


class Net(nn.Module):
    block = Block

    def __init__(self):
        super().__init__()
        self.inp, self.bn = nn.Linear(8, 8), nn.BatchNorm1d(5)
        self.blocks = nn.ModuleList(self.block() for _ in range(3))

    def body(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x):
        return self.body(self.bn(self.inp(x)))


class Frozen(Net):
    def forward(self, x):
        self.bn.eval()
        return super().forward(x)


class FrozenFlag(Net):
    def forward(self, x):
        self.bn.training = False
        return super().forward(x)


class FrozenAll(Net):
    def forward(self, x):
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.Dropout)):
                module.eval()
        return super().forward(x)


class PutBack(Net):
    """Its normalisation runs once in evaluation mode and once in that of the model."""

    def forward(self, x):
        training = self.bn.training
        self.bn.eval()
        x = self.bn(self.inp(x))
        self.bn.train(mode=training)
        return self.body(self.bn(x))


class AtTheEnd(Net):
    def forward(self, x):
        x = super().forward(x)
        self.bn.eval()
        return x


class OwnTrain(Net):
    """A ``train`` of its own keeps a part frozen."""

    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, x):
        self.train(self.training)
        return super().forward(x)


class DropsBlock(Block):
    def forward(self, x):
        self.drop.train(False)
        return x + self.drop(self.linear(self.norm(x)))


class DropsNet(Net):
    block = DropsBlock


class ByHandBlock(Block):
    def forward(self, x):
        return x + F.dropout(self.linear(self.norm(x)), 0.5, self.training)


class FirstFrozen(Net):
    """The blocks read their mode, which the model sets; and the model has an add of its own."""

    block = ByHandBlock

    def forward(self, x):
        self.blocks[0].eval()
        x = self.inp(x)
        return self.body(x + self.bn(x))


class Evaluates(nn.Module):
    """Its ``eval`` is something else."""

    def __init__(self):
        super().__init__()
        self.scale, self.linear = 2.0, nn.Linear(8, 8)

    def eval(self, x=None):
        return super().eval() if x is None else self.scale * self.linear(x)


class EvaluatesNet(Net):
    def __init__(self):
        super().__init__()
        self.other = Evaluates()

    def forward(self, x):
        return super().forward(x) + self.other.eval(x)


def outcome(model, x=X):
    torch.manual_seed(3)
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    own = {n: p for n, p in model.named_parameters() if not n.startswith("resfx.")}
    flags = {n: m.training for n, m in model.named_modules() if n.partition(".")[0] != "resfx"}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    return y.detach(), {n: p.grad for n, p in own.items()}, flags, buffers


def assert_alike(model, new):
    (y, grads, flags, buffers), (z, its, modes, state) = outcome(model), outcome(new)
    torch.testing.assert_close(z, y)
    assert modes == flags
    for name, value in buffers.items():
        torch.testing.assert_close(state[name], value)
    for name, grad in grads.items():
        torch.testing.assert_close(its[name], grad, atol=1e-4, rtol=1e-4)


CASES = [Frozen, FrozenFlag, FrozenAll, PutBack, AtTheEnd, OwnTrain, DropsNet, FirstFrozen]


@pytest.mark.every(2)
@pytest.mark.parametrize("mode", ["ddl", "attnres", "mhc"])
@pytest.mark.parametrize("cls", CASES)
def test_a_mode_that_forward_sets_is_set(cls, mode):
    torch.manual_seed(0)
    model = cls().eval()
    new = copy.deepcopy(resfx.rewrite(model, mode, args=(X,)))
    for training in (False, True, True, False, True):
        model.train(training), new.train(training)
        assert_alike(model, new)
        assert_alike(model, new)  # the second call begins in the modes that the first has left


def test_a_frozen_model_is_captured_once():
    model = Frozen().train()
    new = resfx.rewrite(model, "attnres", args=(X,))
    for training in (True, False, True):
        new.train(training)
        new(X), new(X)
    assert len(new.variants) == 1 and new.variants[0].endswith(": 1")


def test_a_method_of_that_name_that_sets_no_mode():
    model = EvaluatesNet().eval()
    new = copy.deepcopy(resfx.rewrite(model, "attnres", args=(X,)))
    for m in (model, new):
        m.other.scale = 3.0
    torch.testing.assert_close(new(X), model(X))


def test_the_mode_of_a_captured_model_without_inputs():
    new = resfx.rewrite(Frozen().eval(), "ddl")
    assert new(X).shape == X.shape
    with pytest.raises(CaptureError, match="sets the mode of bn"):
        new.train()(X)
    assert resfx.rewrite(Net().train(), "ddl")(X).shape == X.shape


def test_stages_refuse_a_mode_that_the_whole_sets():
    new = resfx.rewrite(Frozen().eval(), "ddl", args=(X,))
    with pytest.raises(VariantError, match="sets the mode of bn"):
        resfx.split(new, args=(X,), at=["blocks.1"])
