"""Changes of type and device: the models a rewritten one shares parameters with keep theirs, optimizers go on."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import resfx

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.inner(x.to(self.inner.weight.dtype)).to(x.dtype)


def small():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


def step(optimizer, model):
    optimizer.zero_grad()
    model(X.to(next(model.parameters()).dtype)).square().sum().backward()
    optimizer.step()


def kinds(model):
    return {p.dtype for p in model.parameters()}


def test_new_parameters_stay_the_objects_they_are():
    model = small()
    new = resfx.rewrite(model, "ddl", args=(X,))
    ours, kept = dict(new.new_parameters()), dict(model.named_parameters())
    new.bfloat16()
    assert all(p is ours[n] and p.dtype == torch.bfloat16 for n, p in new.new_parameters().items()) and ours
    assert all(p is kept[n] and p.dtype == torch.float32 for n, p in model.named_parameters())


def test_everything_stays_the_object_it_is_without_the_original():
    new = resfx.rewrite(small(), "ddl", args=(X,))
    before = list(new.parameters())
    new.double()
    assert all(a is b for a, b in zip(before, new.parameters(), strict=True)) and kinds(new) == {torch.float64}


def test_gradients_and_attributes_go_along():
    model = small()
    new = resfx.rewrite(model, "ddl", args=(X,))
    new(X).sum().backward()
    weight = model[0].inner.weight
    weight.decay, grad = False, weight.grad.clone()
    new.double()
    moved = new[0].inner.weight
    assert moved is not weight and moved.decay is False and torch.equal(moved.grad, grad.double())
    assert weight.grad.dtype == torch.float32 and torch.equal(weight.grad, grad)


def test_an_optimizer_made_before_the_move_says_so_once():
    model = small()
    new = resfx.rewrite(model, "ddl", args=(X,))
    early, others = torch.optim.SGD(new.parameters(), 0.1), torch.optim.SGD(model.parameters(), 0.1)
    new.double()
    step(torch.optim.SGD(new.parameters(), 0.1), new)
    step(others, model)
    model.zero_grad()
    with pytest.warns(RuntimeWarning, match="after the move"):
        step(early, new)
    step(early, new)


def test_an_optimizer_on_what_nobody_shares_trains_after_the_move():
    new = resfx.rewrite(small(), "ddl", args=(X,))
    optimizer = torch.optim.SGD(new.parameters(), 0.1)
    new.double()
    before = new[0].inner.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(optimizer, new)
    assert not torch.equal(before, new[0].inner.weight)


def test_the_original_of_a_model_rewritten_twice_keeps_its_type():
    model = small()
    new = resfx.rewrite(model, "ddl", args=(X,), include="0")
    new = resfx.rewrite(new, "ddl", args=(X,), include="1")
    new.bfloat16()
    assert kinds(model) == {torch.float32} and kinds(new) == {torch.bfloat16}


def test_a_model_of_several_types_whose_first_has_the_one_wanted():
    model = small()
    model[0].bfloat16()
    new = resfx.rewrite(model, "ddl", args=(X,))
    new.bfloat16()
    assert kinds(model) == {torch.float32, torch.bfloat16} and kinds(new) == {torch.bfloat16}
