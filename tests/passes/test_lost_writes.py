"""Generated code makes every call that leaves values in an object, or is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import resfx
from resfx.errors import VariantError
from resfx.passes.capture.marking.record import MethodOf
from resfx.passes.fold.code import Writer
from resfx.passes.fold.function import NotExpressible


class Memory:
    def __init__(self):
        self.last, self.total = None, torch.zeros(8)

    def replace(self, x):
        self.last = x.mean(1)

    def add(self, x):
        self.total += x.detach().mean((0, 1))

    def compare(self, x):
        return x - x.mean(1, keepdim=True)


class Block(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method, self.norm, self.linear = method, nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x, memory):
        h = self.norm(x)
        seen = getattr(memory, self.method)(h)
        return x + self.linear(h if seen is None else seen)


class Net(nn.Module):
    def __init__(self, method, blocks=2):
        super().__init__()
        self.blocks = nn.ModuleList(Block(method) for _ in range(blocks))

    def forward(self, x, memory):
        for block in self.blocks:
            x = block(x, memory)
        return x


def left_out(self, inner):
    """A fold that takes a call for one that nobody needs."""


def impossible(self, inner):
    raise NotExpressible("something that is not there")


def writer_with(fault):
    whole = Writer._call
    return lambda self, inner: (fault if isinstance(inner.call.target, MethodOf) else whole)(self, inner)


@pytest.mark.parametrize("method", ["replace", "add", "compare"])
def test_a_method_of_an_object_does_what_it_did(method):
    torch.manual_seed(0)
    model, x, memories = Net(method), torch.randn(2, 3, 8), [Memory(), Memory()]
    new = resfx.rewrite(model, "ddl", args=(x, Memory()))
    assert torch.equal(model(x, memories[0]), new(x, memories[1]))
    for name, value in vars(memories[0]).items():
        assert value is vars(memories[1])[name] is None or torch.equal(value, vars(memories[1])[name])


@pytest.mark.parametrize("method, fault, found", [
    ("replace", left_out, "replace, which leaves values in an object, would not run"),
    ("add", left_out, "add, which leaves values in an object, would not run"),
    ("replace", impossible, "what replace leaves in an object would not get into it"),
])  # fmt: skip
def test_what_would_be_lost_is_refused(monkeypatch, method, fault, found):
    monkeypatch.setattr(Writer, "_call", writer_with(fault))
    with pytest.raises(VariantError, match=found):
        resfx.rewrite(Net(method, blocks=1), "ddl", args=(torch.randn(2, 3, 8), Memory()))


@pytest.mark.parametrize("method", ["add", "compare"])
def test_operators_say_all_that_other_methods_do(monkeypatch, method):
    """Taken into the code around it, such a call does the same."""
    torch.manual_seed(0)
    model, x, memories = Net(method), torch.randn(2, 3, 8), [Memory(), Memory()]
    monkeypatch.setattr(Writer, "_call", writer_with(impossible))
    new = resfx.rewrite(model, "ddl", args=(x, Memory()))
    assert torch.equal(model(x, memories[0]), new(x, memories[1]))
    assert torch.equal(memories[0].total, memories[1].total)
