"""Tensors and numbers in lists, dicts and objects that modules hold: read where they are, written where they were."""

from __future__ import annotations

import copy
from collections import deque

import numpy as np
import pytest
import torch
from hosts import small
from torch import nn

import resfx

X = small.batch()


class Memory:
    def __init__(self):
        self.scale, self.gain = torch.tensor(2.0), 3.0
        self.table = {"shift": torch.zeros(8)}

    def step(self, y):
        self.scale = 0.5 * self.scale + y.detach().mean()
        self.table["shift"] = self.scale * torch.ones(8)
        return y * self.scale + self.table["shift"]


class Slots:
    __slots__ = ("gain", "scale")

    def __init__(self):
        self.scale, self.gain = torch.tensor(2.0), 3.0


class Same:
    """Three places of one tensor."""

    def __new__(cls):
        return [torch.tensor(2.0)] * 3


def mean_in_dict(o, y):
    o["mean"] = 0.5 * o["mean"] + y.detach().mean()
    return y * (1 + o["mean"])


def mean_in_place(o, y):
    o["mean"].mul_(0.5).add_(y.detach().mean())
    return y * (1 + o["mean"])


def nested(o, y):
    o["a"]["b"] = 0.5 * o["a"]["b"] + y.detach().mean()
    o["n"][0] += 1
    return y * (o["a"]["b"] + o["n"][0])


def ring(o, y):
    o[0], o[1] = o[1] + y.detach().mean(), o[0]
    return y + o[0]


def queue(o, y):
    o.append(y.detach().mean())
    return y + sum(o)


def last(o, y):
    if o:
        y = y + o[-1]
    o.append(y.detach())
    return y


def block(hold, use):
    class Block(small.Block):
        def __init__(self):
            super().__init__()
            self.o = hold()

        def forward(self, x):
            return x + use(self.o, self.down(self.act(self.up(self.norm(x)))))

    return Block


def net(made):
    class Net(small.Net):
        def __init__(self):
            super().__init__(blocks=0)
            self.blocks = nn.ModuleList(made() for _ in range(3))

    torch.manual_seed(0)
    return Net().eval()


def pair(hold, use, mode):
    model = net(block(hold, use))
    return copy.deepcopy(model), copy.deepcopy(resfx.rewrite(model, mode, args=(X,)))


def number(value):
    return torch.tensor(float(value))


# What a block holds, what it does with it, and what is done to it later.
READ = {
    "a tensor in a dict": (lambda: {"t": number(2)}, lambda o, y: y * o["t"], [
        lambda b: b.o["t"].mul_(3), lambda b: b.o.update(t=number(7)), lambda b: setattr(b, "o", {"t": number(5)})]),
    "in a list": (lambda: [torch.ones(8)], lambda o, y: y + sum(o), [
        lambda b: b.o.__setitem__(0, number(4)), lambda b: b.o.append(number(1))]),
    "in a tuple": (lambda: (number(2), number(3)), lambda o, y: y * o[0] + o[1], [
        lambda b: setattr(b, "o", (number(4), number(5)))]),
    "beside a number": (lambda: {"t": number(2), "gain": 3.0}, lambda o, y: y * o["t"] * o["gain"], [
        lambda b: b.o.update(gain=1.0)]),
    "of which a key is missing": (lambda: {"t": number(2)}, lambda o, y: y if "off" in o else y * o["t"], [
        lambda b: b.o.update(off=True)]),
    "under a type and a device": (lambda: {(torch.float32, torch.device("cpu")): number(2)},
                                  lambda o, y: y * o[y.dtype, y.device], [
        lambda b: b.o.update(dict.fromkeys(b.o, number(5)))]),
    "that becomes None": (lambda: {"t": number(2)}, lambda o, y: y if o["t"] is None else y * o["t"], [
        lambda b: b.o.update(t=None)]),
    "in an object": (Memory, lambda o, y: y * o.scale * o.gain + o.table["shift"], [
        lambda b: b.o.scale.mul_(3), lambda b: setattr(b.o, "scale", number(7)), lambda b: setattr(b.o, "gain", 1.0),
        lambda b: b.o.table.update(shift=torch.ones(8))]),
    "in slots": (Slots, lambda o, y: y * o.scale * o.gain, [
        lambda b: setattr(b.o, "scale", number(7)), lambda b: setattr(b.o, "gain", 1.0)]),
    "one tensor in three places": (Same, lambda o, y: y * o[1] + o[2], [
        lambda b: b.o.__setitem__(1, number(5)), lambda b: b.o.__setitem__(2, number(7))]),
    "a parameter in a dict": (lambda: {"w": nn.Parameter(torch.ones(8))}, lambda o, y: y * o["w"], [
        lambda b: b.o["w"].data.mul_(2)]),
    "an attribute that becomes None": (lambda: number(2), lambda o, y: y if o is None else y * o, [
        lambda b: setattr(b, "o", None)]),
    "an array": (lambda: np.ones(8, dtype=np.float32), lambda o, y: y * torch.from_numpy(o), [
        lambda b: setattr(b, "o", np.full(8, 3.0, dtype=np.float32))]),
}  # fmt: skip

WRITTEN = {
    "set in a dict": (lambda: {"mean": number(0)}, mean_in_dict),
    "written in place": (lambda: {"mean": number(0)}, mean_in_place),
    "set in a dict in a dict": (lambda: {"a": {"b": number(0)}, "n": [0]}, nested),
    "items that change places": (lambda: [number(0), number(1)], ring),
    "a queue": (lambda: deque([number(0)]), queue),
    "a queue that is full": (lambda: deque([number(0), number(0)], maxlen=2), queue),
    "an object's own method": (Memory, lambda o, y: o.step(y)),
    "a list that grows and is read": (list, last),
}


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
@pytest.mark.parametrize("what", READ)
def test_what_is_changed_there_acts(what, mode):
    hold, use, changes = READ[what]
    before, new = pair(hold, use, mode)
    assert torch.equal(before(X), new(X))
    for change in changes:
        with torch.no_grad():
            change(before.blocks[0])
            change(new.blocks[0])
        assert torch.equal(before(X), new(X))


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
@pytest.mark.parametrize("what", WRITTEN)
def test_what_is_written_there_is_there_at_the_next_call(what, mode):
    before, new = pair(*WRITTEN[what], mode)
    seen = [before(x) for x in (X, 2 * X, 3 * X)]
    assert not torch.equal(seen[0], before(X))
    for x, want in zip((X, 2 * X, 3 * X), seen, strict=True):
        assert torch.equal(new(x), want)


def test_what_grows_without_being_read_is_no_new_call():
    def collect(o, y):
        o.append(y)
        return y

    _, new = pair(list, collect, "ddl")
    for _ in range(6):
        new(X)
    assert len(resfx.of(new).variants) <= 6  # at first the lists are empty: two for each block
    assert [len(b.o) for b in new.blocks] == [6, 6, 6]


def test_what_is_taken_out_is_told():
    def pop(o, y):
        o.pop("t", None)
        return y

    with pytest.warns(UserWarning, match="changes 'o'"), pytest.raises(resfx.errors.CheckError):
        pair(lambda: {"t": number(1)}, pop, "ddl")


@pytest.mark.parametrize("what", WRITTEN)
def test_the_model_is_left_as_it_was(what):
    model = net(block(*WRITTEN[what]))
    twin = copy.deepcopy(model)
    resfx.scan(model, args=(X,))
    resfx.rewrite(model, "ddl", args=(X,))
    assert torch.equal(model(X), twin(X))


def test_an_export_has_what_is_there_now(tmp_path):
    _, new = pair(*READ["a tensor in a dict"][:2], "ddl")
    new.blocks[0].o["t"] = number(7)
    program = torch.export.export(new, (X,))
    torch.testing.assert_close(program.module()(X), new(X))
    resfx.export.to_onnx(new, tmp_path / "model.onnx", args=(X,))  # held against the model
