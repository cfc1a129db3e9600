"""A state that is detached or dropped for some of its readers is not the state: what a read gives does not replace it.

Models are rewritten in eval mode and called in training mode, which is another capture and has no check of its own.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import small
from torch import nn
from torch.nn import functional as F

import resfx

X = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.norm, self.up, self.down, self.form = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), form

    def branch(self, x):
        return self.down(torch.tanh(self.up(self.norm(x))))

    def forward(self, x):
        return FORMS[self.form](self, x)


FORMS = {
    "a gate of the detached state": lambda b, x: (
        (y := x + b.branch(x)) * (1 + y.detach()[:, -1:]) if b.training else x + b.branch(x)
    ),
    "a norm of the detached state": lambda b, x: (
        (y := x + b.branch(x)) / y.detach().norm(dim=-1, keepdim=True) if b.training else x + b.branch(x)
    ),
    "a branch of the detached state": lambda b, x: x + b.branch(x.detach() if b.training else x),
    "a detached shortcut": lambda b, x: (x.detach() if b.training else x) + b.branch(x),
    "a branch of the dropped state": lambda b, x: x + b.branch(F.dropout(x, 0.5, b.training)),
}


class Net(small.Net):
    def __init__(self, form):
        super().__init__(blocks=0)
        self.blocks = nn.ModuleList(Block(form) for _ in range(3))


def trained(model):
    torch.manual_seed(3)
    model.zero_grad()
    out = model.train()(X)
    out.square().sum().backward()
    return out, {n: p.grad for n, p in model.named_parameters() if not n.startswith("resfx.")}


@pytest.mark.every(2)
@pytest.mark.parametrize("mode", ["ddl", "attnres", "elc", "depth_read", "delta_attnres", "denseformer"])
@pytest.mark.parametrize("form", FORMS)
def test_training_is_the_originals(form, mode):
    torch.manual_seed(0)
    model = Net(form).double().eval()
    new = copy.deepcopy(resfx.rewrite(model, mode, args=(X,)))
    (want, grads), (found, others) = trained(model), trained(new)
    torch.testing.assert_close(found, want, rtol=0, atol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-12, atol=1e-12)
