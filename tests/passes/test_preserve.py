"""Running a model and leaving it as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from resfx.passes.preserve import preserved


class Restless(nn.Module):
    """Disturbs everything that a step can: statistics, buffers replaced, added and written, all three generators."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("absent", None)
        self.register_buffer("last", torch.zeros(4), persistent=False)

    def forward(self, x):
        self.steps += 1
        self.last = x.mean(0)
        self.absent = torch.ones(1)
        self.register_buffer("late", torch.ones(2))
        return self.drop(self.norm(self.linear(x))) + random.random() + float(np.random.rand())


def facts(model):
    """Everything a step may change, each tensor with its identity."""
    held = {n: (id(b), None if b is None else b.clone()) for m in model.modules() for n, b in m._buffers.items()}
    grads = {n: (id(p.grad), None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()}
    flags = [m.training for m in model.modules()]
    numpy_state = np.random.get_state()
    return held, grads, flags, torch.get_rng_state(), random.getstate(), numpy_state[1].tolist(), numpy_state[2:]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_ran_is_as_before(fails):
    model = Restless()
    model.norm.eval()
    model.linear.weight.grad = torch.ones(4, 4)
    before = facts(model)

    def use():
        with preserved(model):
            assert model.linear.weight.grad is None
            model.train()
            model(torch.randn(3, 4)).sum().backward()
            assert not equal(facts(model)[:6], before[:6])
            if fails:
                raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            use()
    else:
        use()
    assert equal(facts(model), before)


def test_what_two_models_share_is_kept_once():
    model = Restless()
    other = nn.Sequential(model, nn.Linear(4, 4))
    before = facts(other)
    with preserved(model, other):
        other(torch.randn(3, 4)).sum().backward()
    assert equal(facts(other), before)
