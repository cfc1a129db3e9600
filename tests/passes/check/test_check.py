"""The check: what the original has is what the rewritten model has, gradients and random numbers included."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import resfx
from resfx.errors import CheckError

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8, bias=bias)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """Two blocks and a head; ``between`` acts on what goes to the head."""

    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(2)), nn.Linear(8, 8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.between(x))

    def between(self, h):
        return h


def rewrite(cls, mode="ddl", x=X, training=False):
    torch.manual_seed(0)
    return resfx.rewrite(cls().train(training), mode, args=(x,))


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


def reverse(module, h):
    return Reverse.apply(h)


def reverse_in_training(module, h):
    return Reverse.apply(h) if module.training else h


def damp(module, h):
    if h.requires_grad:
        h.register_hook(lambda grad: grad * 0.1)
    return h


def damp_in_training(module, h):
    return damp(module, h) if module.training else h


def beside(act):
    """A model whose own code does something; none of its adds is there."""
    return type("Beside", (Net,), {"between": act})


def within(act):
    """A model whose second block does something to the sum that its add gives."""

    class Acting(Block):
        def forward(self, x):
            return act(self, super().forward(x))

    class Within(Net):
        def __init__(self):
            super().__init__()
            self.blocks[1] = Acting()

    return Within


def steps(model, names):
    """Values and gradients of calls from some seeds, in both modes."""
    for training in (False, True):
        for number in (0, 1, 2):
            model.train(training).zero_grad()
            torch.manual_seed(number), random.seed(number), np.random.seed(number)
            out = model(X)
            (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
            yield from [out, *(model.get_parameter(n).grad for n in names)]


def same_steps(new, cls):
    """Whether a rewritten model gives the values and the gradients that an original gives."""
    model = cls()
    model.load_state_dict(new.state_dict(), strict=False)
    names = [n for n, _ in model.named_parameters()]
    pairs = zip(steps(model, names), steps(new, names), strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


HAND = r"by hand \(Reverse\)"
HOOK = r"register_hook at .*test_check.py:"
ACTS = [(reverse, HAND), (reverse_in_training, HAND), (damp, HOOK), (damp_in_training, HOOK)]


@pytest.mark.parametrize("act", [act for act, _ in ACTS])
@pytest.mark.parametrize("training", [False, True])
def test_what_the_users_own_code_does_to_gradients_is_kept(act, training):
    cls = beside(act)
    assert same_steps(rewrite(cls, training=training), cls)


def retain(module, h):
    if h.requires_grad:
        h.retain_grad()
    return h


def test_a_gradient_that_is_kept_no_more_is_named(recwarn):
    rewrite(beside(retain))
    assert not recwarn
    with pytest.warns(UserWarning, match=r"retain_grad\(\) at .*test_check.py:.* is lost in rewritten code"):
        rewrite(within(retain))


@pytest.mark.parametrize(("act", "word"), ACTS)
@pytest.mark.parametrize("training", [False, True])
def test_what_generated_code_would_lose_of_gradients_is_refused_by_name(act, word, training):
    with pytest.raises(CheckError, match=word) as caught:
        rewrite(within(act), training=training)
    assert "blocks.0.norm.weight" in caught.value.found and "head.weight" not in caught.value.found


class Python(Net):
    def forward(self, x):
        for block in self.blocks:
            if not (self.training and random.random() < 0.5):
                x = block(x)
        return self.head(x)


def arrays_in_training(module, h):
    return h * float(np.random.rand()) if module.training else h


def always(module, h):
    return h * random.random()


class Skipping(Block):
    """Stochastic depth of Python's making in the code around an add."""

    def forward(self, x):
        return x if self.training and random.random() < 0.5 else super().forward(x)


class SkippingNet(Net):
    def __init__(self):
        super().__init__()
        self.blocks[1] = Skipping()


class Dropped(Net):
    def between(self, h):
        return nn.functional.dropout(h, 0.3, self.training)


@pytest.mark.parametrize("cls", [Python, beside(arrays_in_training), beside(always)])
def test_random_numbers_that_the_users_own_code_draws_are_kept(cls):
    assert same_steps(rewrite(cls), cls)


@pytest.mark.parametrize(("cls", "word"), [
    (SkippingNet, "Python's random"), (within(arrays_in_training), "numpy"), (within(always), "Python's random"),
])  # fmt: skip
def test_random_numbers_that_generated_code_would_hold_are_refused(cls, word):
    with pytest.raises(CheckError, match=word):
        rewrite(cls)


def test_random_numbers_of_torch_are_kept():
    for training in (False, True):
        new = rewrite(Dropped, training=training)
        model = Dropped().train()
        model.load_state_dict(new.state_dict(), strict=False)
        for seed in (0, 1):
            torch.manual_seed(seed)
            want = model(X)
            torch.manual_seed(seed)
            assert torch.equal(want, new.train()(X))


class Normed(nn.Module):
    """Not a number where the branch writes nothing."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x, f, c):
        return x + f + self.gate * f / f.norm(dim=-1, keepdim=True)


class Root(nn.Module):
    """Exact at the start, with an infinite derivative there."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x, f, c):
        return x + f + self.gate.abs().sqrt() * f


class Method(resfx.Method):
    name = "mine"
    module = Normed

    def build(self, place):
        return type(self).module()


class RootMethod(Method):
    module = Root


class Silent(nn.Module):
    """A row of zeros stays one up to the adds."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(torch.relu(x))
        return x


def test_nan_where_the_original_has_zero_is_refused():
    x = X.clone()
    x[1] = 0
    with pytest.raises(CheckError, match="NaN in one of the two alone"):
        rewrite(Silent, Method(), x)


class Poisoned(Silent):
    def forward(self, x):
        return super().forward(x) * torch.where(torch.arange(8) == 3, float("nan"), 1.0)


def test_nan_where_the_original_has_nan_is_none_of_the_rewrites_business():
    model = Poisoned()
    with pytest.warns(UserWarning, match="not finite on this example"):
        new = resfx.rewrite(model, "ddl", args=(torch.zeros(2, 8),))
    assert new(X).isnan()[..., 3].all() and not new(X).isnan()[..., 4].any()


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(CheckError, match=r"1.*not finite|2 of 2 new parameters have a gradient that is not finite"):
        rewrite(Net, RootMethod())


class Side(Net):
    """A part that the model computes without gradients, and one that its output does not depend on."""

    def __init__(self):
        super().__init__()
        self.frozen = Block()

    def forward(self, x):
        with torch.no_grad():
            x = self.frozen(x)
        return super().forward(x)


class Zeroed(Net):
    def forward(self, x, scale):
        return super().forward(x) * scale


def test_a_gradient_missing_for_want_of_an_example_is_a_warning_with_names():
    with pytest.warns(UserWarning, match=r"get no gradient on this example.*resfx\.ddl\.frozen\.add0") as said:
        new = rewrite(Side)
    assert said[0].filename == __file__, "the warning points at the user's line"
    assert not any("blocks" in str(w.message) for w in said)
    assert len(new.report.changed) == 3
    with pytest.warns(UserWarning, match="8 of 8 new parameters"):
        resfx.rewrite(Zeroed(), "ddl", args=(X, torch.zeros(())))


class Stateful(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.calls = 0

    def between(self, h):
        self.calls += 1
        return self.norm(h)


def test_nothing_is_left_behind_in_the_users_model_or_the_generators():
    model = Stateful().train()
    model.blocks[0].eval()
    held = copy.deepcopy(model.state_dict())
    numbers = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    new = resfx.rewrite(model, "denseformer", args=(X,))
    assert all(torch.equal(v, model.state_dict()[k]) and torch.equal(v, new.state_dict()[k]) for k, v in held.items())
    assert torch.equal(numbers[0], torch.get_rng_state()) and numbers[1] == random.getstate()
    assert (numbers[2] == np.random.get_state()[1]).all()
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in new.blocks] == [m.training for m in model.blocks] == [False, True]
    assert model.calls == 0
