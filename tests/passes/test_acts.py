"""What generated code would lose of a call is refused by its name and line, also where a later call does it first."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hosts import small
from torch import nn
from torch.utils.checkpoint import checkpoint

import resfx
from resfx.errors import VariantError

X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))


class Tenth(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 0.1


class Plain(Tenth):
    """A backward that is what autograd would do."""

    @staticmethod
    def backward(ctx, grad):
        return grad.clone()


tenth, plain = Tenth.apply, Plain.apply


def hook(h):
    if h.requires_grad:
        h.register_hook(lambda grad: grad * 0.1)
    return h


def forked(h):
    with torch.random.fork_rng():
        return F.dropout(h, 0.5)


def put_back(h):
    state = torch.get_rng_state()
    h = F.dropout(h, 0.5)
    torch.set_rng_state(state)
    return h


def seeded(h):
    torch.manual_seed(7)
    return h


def seeded_by_chance(h):
    torch.manual_seed(torch.seed() % 1000)
    return h


def recomputed(h):
    return checkpoint(torch.tanh, h, use_reentrant=False)


class Act(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, h):
        return self.act(h)


class Block(nn.Module):
    def __init__(self, act, apart):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        self.act = Act(act) if apart else act

    def forward(self, x, acts):
        h = self.linear(self.norm(x))
        return x + (self.act(h) if acts else h)


class Net(nn.Module):
    def __init__(self, act, apart=False, in_training=False):
        super().__init__()
        self.inp, self.in_training = nn.Linear(8, 8), in_training
        self.blocks = nn.ModuleList(Block(act, apart) for _ in range(2))

    def forward(self, x, acts=False):
        x = self.inp(x)
        for block in self.blocks:
            x = block(x, acts or (self.in_training and self.training))
        return x


LOST = {
    "hook": (hook, r"puts a hook on a tensor \(register_hook\) at .*test_acts.py:45;"),
    "function": (tenth, r"has a backward written by hand \(Tenth\) at .*test_acts.py"),
    "random": (lambda h: h * random.random(), r"draws numbers from Python's random at .*test_acts.py"),
    "numpy": (lambda h: h * float(np.random.rand()), r"draws numbers from numpy.random at .*test_acts.py"),
}
SEEDING = {"forked": forked, "put back": put_back, "seeded": seeded}


def outcome(model, *args):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    model.zero_grad()
    y = model(X, *args)
    y.square().sum().backward()
    drawn = torch.rand(1), random.random(), np.random.rand()
    return [y.detach(), *(p.grad for n, p in model.named_parameters() if not n.startswith("resfx.")), drawn[0]], drawn


def assert_alike(model, new, *args):
    outcome(new, *args)  # a capture draws numbers, too
    (want, drawn), (got, its) = outcome(model, *args), outcome(new, *args)
    torch.testing.assert_close(got, want)
    assert drawn[1:] == its[1:]


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
@pytest.mark.parametrize("act, found", LOST.values(), ids=LOST)
def test_a_later_call_that_does_what_would_be_lost_is_refused(act, found, mode):
    new = resfx.rewrite(Net(act), mode, args=(X,))
    for _ in range(2):
        with pytest.raises(VariantError, match=found):
            new(X, True)
    assert new(X).shape == X.shape


@pytest.mark.parametrize("act", [act for act, _ in LOST.values()] + list(SEEDING.values()), ids=[*LOST, *SEEDING])
def test_a_submodule_of_its_own_keeps_it(act):
    torch.manual_seed(0)
    model = Net(act, apart=True)
    new = resfx.rewrite(model, "attnres", args=(X,))
    assert_alike(model, new, True)


@pytest.mark.parametrize("act", [hook, tenth])
def test_calls_without_gradients_lose_none(act):
    model = Net(act)
    new = resfx.rewrite(model, "attnres", args=(X,))
    with torch.no_grad():
        torch.testing.assert_close(new(X, True), model(X, True))
    with pytest.raises(VariantError, match="which would lose what its code does"):
        new(X, True)


@pytest.mark.parametrize("act", [plain, recomputed, seeded_by_chance])
def test_what_was_checked_or_loses_nothing_is_no_reason(act):
    new = resfx.rewrite(Net(act), "attnres", args=(X, True))
    new(X[:, :1], True), new.eval()(X, True)
    assert len(new.variants) > 1
    model = Net(act, in_training=True).eval()
    new = resfx.rewrite(model, "attnres", args=(X,)).train()  # the check makes a training call, too
    assert new(X).shape == X.shape


def test_without_a_check_it_is_said():
    new = resfx.rewrite(Net(hook), "ddl", args=(X,), check=False)
    with pytest.warns(UserWarning, match="register_hook.*which a capture may lose"):
        new(X, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new(X, True)


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
@pytest.mark.parametrize("act", SEEDING.values(), ids=SEEDING)
def test_what_is_done_to_the_generators_of_torch_is_refused(act, mode):
    with pytest.raises(VariantError, match=r"cannot write the code of blocks.*\n.*torch's random numbers.*test_acts"):
        resfx.rewrite(Net(act), mode, args=(X, True))
    new = resfx.rewrite(Net(act), mode, args=(X,))
    with pytest.raises(VariantError, match=r"torch's random numbers .* at .*test_acts.py:\d+, which generated"):
        new(X, True)


@pytest.mark.parametrize("mode", ["ddl", "layer_scale"])
def test_numbers_drawn_between_blocks_stay_the_models_own(mode):
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(small.Block() for _ in range(2))

        def forward(self, x):
            for block in self.blocks:
                if random.random() < 2:  # nothing is dropped
                    x = block(x)
            return x

    class Net(small.Net):
        def __init__(self):
            super().__init__(blocks=0)
            self.trunk = Body()

        def forward(self, x):
            return self.out(self.trunk(self.inp(x)))

    new = resfx.rewrite(small.net(Net), mode, args=(X,))
    assert {name.partition(":")[0] for name in resfx.of(new).variants} == {"trunk.blocks.0", "trunk.blocks.1"}
    random.seed(3), new(X)
    first = random.random()
    random.seed(3), [random.random() for _ in range(2)]
    assert first == random.random()
