"""Methods of a user's own that raise or give another thing are named by the check; calls that recompute pass it."""

from __future__ import annotations

import pytest
import torch
from hosts.small import Block, Net, batch, net
from torch import nn
from torch.utils.checkpoint import checkpoint

import resfx
from resfx.errors import CheckError


class Own(resfx.Method):
    name = "own"

    def __init__(self, forward):
        object.__setattr__(self, "run", forward)

    def build(self, place):
        run = self.run

        class Add(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.zeros(()))

            def forward(self, x, f, c):
                return run(x, f + self.w * f)

        return Add()


@pytest.mark.parametrize(("forward", "found"), [
    (lambda x, f: 1 / 0, "ZeroDivisionError"), (lambda x, f: None, "ModelError"), (lambda x, f: (x + f,), "ModelError"),
    (lambda x, f: (x + f).double(), "RuntimeError"),
])  # fmt: skip
def test_a_method_that_raises_or_gives_another_thing_is_named(forward, found):
    with pytest.raises(CheckError, match=found) as caught:
        resfx.rewrite(net(), Own(forward), args=(batch(),))
    assert "own.blocks.0.add0" in str(caught.value)


def test_a_method_that_writes_over_what_others_need_is_told():
    with pytest.raises(CheckError, match="inplace"):
        resfx.rewrite(net(), Own(lambda x, f: x.mul_(1).add_(f)), args=(batch(),))


class Inside(Block):
    def branch(self, x):
        return self.down(self.act(self.up(self.norm(x))))

    def forward(self, x):
        return x + checkpoint(self.branch, x, use_reentrant=True)


class Around(Net):
    def body(self, x):
        x = self.inp(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True)
        return x


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
@pytest.mark.parametrize("where", ["inside", "around"])
def test_reentrant_checkpoints(mode, where):
    def made():
        model = net(Around if where == "around" else Net)
        if where == "inside":
            torch.manual_seed(0)
            model.blocks = nn.ModuleList(Inside() for _ in range(2))
        return model.train()

    model, new = made(), resfx.rewrite(made(), mode, args=(batch(),))
    for m in (model, new):
        m(batch()).square().sum().backward()
    grads = dict(new.named_parameters())
    assert all(torch.allclose(p.grad, grads[n].grad, atol=1e-6) for n, p in model.named_parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in new.new_parameters().values())


class Assigned(Net):
    """Writes the sum over what it read: a plain add keeps nothing for its way back, a method may."""

    def body(self, x):
        x = self.inp(x)
        for b in self.blocks:
            y = x.clone()
            y[..., :8] = y + b.down(b.act(b.up(b.norm(x))))
            x = y
        return x


def test_an_add_whose_operand_is_written_over_behind_it():
    model, new = net(Assigned), resfx.rewrite(net(Assigned), "ddl", args=(batch(),))
    for m in (model, new):
        m(batch()).square().sum().backward()
    assert torch.equal(new(batch()), model(batch())) and len(new.report.changed) == 2
    assert torch.equal(model.inp.weight.grad, new.inp.weight.grad)
