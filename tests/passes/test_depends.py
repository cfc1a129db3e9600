"""What generated code depends on beside values: what was missing, empty, to be called, handed down, shared; and what it
leaves in the parts of an object."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hosts import small
from torch import nn
from torch.nn import functional as F

import resfx

X = small.batch()


@dataclass(slots=True)
class Gain:
    by: float = 1.0


class Block(small.Block):
    def __init__(self):
        super().__init__()
        self.register_module("adapter", None)
        self.register_parameter("shift", None)
        self.config, self.gain, self.fn = SimpleNamespace(), Gain(), functools.partial(F.leaky_relu, negative_slope=0.1)
        self.hook, self.default = self.norm.forward, lambda x, by=2: x * by
        self.norm2 = self.norm

    def twice(self, x):
        return x * 2

    def forward(self, x):
        h = self.down(self.act(self.up(self.norm(x))))
        h = h * getattr(self, "scale", 1.0) * getattr(self.config, "alpha", 1.0) * self.gain.by
        h = h if self.adapter is None else self.adapter(h)
        h = h if self.shift is None else h + self.shift
        h = h * (2 if self.up.bias is None else 1)
        h = self.extra(h) if hasattr(self, "extra") else h
        for name, child in self.named_children():
            h = child(h) if name.startswith("late") else h
        return x + self.default(self.twice(self.fn(self.norm2(self.hook(h)))))


class Net(small.Net):
    def __init__(self):
        super().__init__(blocks=0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))


def linear():
    torch.manual_seed(3)
    return nn.Linear(8, 8)


CHANGES = {
    "a missing attribute set": lambda b: setattr(b, "scale", 3.0),
    "one of a config": lambda b: setattr(b.config, "alpha", 2.0),
    "a module where there was none": lambda b: setattr(b, "adapter", linear()),
    "a parameter where there was none": lambda b: setattr(b, "shift", nn.Parameter(torch.ones(8))),
    "and none again": lambda b: setattr(b, "shift", None),
    "a parameter taken away": lambda b: setattr(b.up, "bias", None),
    "that module taken away": lambda b: setattr(b, "adapter", None),
    "a module added": lambda b: b.add_module("extra", linear()),
    "and deleted": lambda b: delattr(b, "extra"),
    "and added again": lambda b: b.add_module("extra", linear()),
    "one that a loop meets": lambda b: b.add_module("late", linear()),
    "a field of a dataclass with slots": lambda b: setattr(b.gain, "by", 0.5),
    "another partial": lambda b: setattr(b, "fn", functools.partial(F.leaky_relu, negative_slope=0.9)),
    "a function for a partial": lambda b: setattr(b, "fn", torch.sigmoid),
    "another default": lambda b: setattr(b, "default", lambda x, by=3: x * by),
    "a function for a bound method": lambda b: setattr(b, "hook", torch.tanh),
    "a method of the instance's own": lambda b: setattr(b, "twice", lambda x: x * 5),
    "one of two names of a module": lambda b: setattr(b, "norm2", linear()),
}


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
def test_a_change_acts(mode):
    model = small.net(Net)
    new = resfx.rewrite(copy.deepcopy(model), mode, args=(X,))
    for what, change in CHANGES.items():  # each must act on what the others left
        before = model(X)
        for tree in (model, new):
            change(tree.blocks[1])
        assert not torch.equal(model(X), before), what
        assert torch.equal(new(X), model(X)), what


def test_nothing_changed_is_no_new_call():
    new = resfx.rewrite(small.net(Net), "ddl", args=(X,))
    for _ in range(3):
        new(X)
    assert {len(block._resfx_unit.variants) for block in new.blocks} == {1}
    twin = copy.deepcopy(new)
    assert torch.equal(twin(X), new(X))


class Handed(small.Block):
    def forward(self, x, drop, config, parent):
        h = self.down(self.act(self.up(self.norm(x)))) * config.gain * (1 if parent.training else 2)
        return x + drop(h)


class Hands(small.Net):
    def __init__(self):
        super().__init__(blocks=0)
        self.blocks = nn.ModuleList(Handed() for _ in range(2))
        self.drop, self.config = nn.Dropout(0.5), SimpleNamespace(gain=1.0)

    def body(self, x):
        x = self.inp(x)
        for block in self.blocks:
            x = block(x, self.drop, self.config, self)
        return x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["ddl", "attnres", "mhc"])
def test_what_a_block_is_handed_of_its_parent(mode, training):
    model = small.net(Hands).train(training)
    new = resfx.rewrite(copy.deepcopy(model), mode, args=(X,))
    changes = (
        lambda m: m.train(not training), lambda m: setattr(m.config, "gain", 3.0), lambda m: setattr(m.drop, "p", 0.9),
        lambda m: m.eval(),
    )  # fmt: skip
    for change in changes:
        found = []
        for tree in (model, new):
            change(tree)
            torch.manual_seed(5)
            found.append(tree(X))
        assert torch.equal(*found)


def test_a_module_among_the_arguments_is_refused():
    class Given(small.Net):
        def forward(self, x, norm):
            return norm(super().forward(x))

    with pytest.raises(resfx.errors.CaptureError, match="norm is a LayerNorm"):
        resfx.rewrite(small.net(Given), "ddl", args=(X, nn.LayerNorm(8)))


class Shared(small.Net):
    def __init__(self):
        super().__init__(blocks=1)
        self.blocks.append(self.blocks[0])
        self.out.weight = self.inp.weight

    def forward(self, x):
        return F.linear(super().body(F.linear(x, self.inp.weight)), self.out.weight)


@pytest.mark.parametrize("mode", ["ddl", "attnres", "mhc", "denseformer"])
def test_names_of_one_thing_that_become_names_of_two(mode):
    model = small.net(Shared)
    new = resfx.rewrite(copy.deepcopy(model), mode, args=(X,))

    def part(m):
        m.blocks[1] = copy.deepcopy(m.blocks[1])
        with torch.no_grad():
            m.blocks[1].up.weight.mul_(3)

    for change in (part, lambda m: setattr(m.out, "weight", nn.Parameter(m.out.weight.detach() * 2))):
        for tree in (model, new):
            change(tree)
        assert torch.equal(new(X), model(X))


class Layer:
    def __init__(self):
        self.kept, self.seen = None, 0

    def put(self, kept):
        self.kept = kept


class Cache:
    def __init__(self):
        self.layers = [Layer(), Layer()]


class Keeps(small.Block):
    def forward(self, x, cache=None):
        h = self.norm(x)
        if cache is not None:
            layer = cache.layers[self.number]
            h = h if layer.kept is None else h + 0.5 * layer.kept
            if self.number:
                layer.put(h)
            else:
                layer.kept = h
            layer.seen += 1
        return x + self.down(self.act(self.up(h)))


class KeepsByName(small.Block):
    def forward(self, x, state=None):
        h = self.norm(x)
        if state is not None:
            name = f"kept{self.number}"
            h = h + 0.5 * getattr(state, name) if hasattr(state, name) else h
            setattr(state, name, h)
        return x + self.down(self.act(self.up(h)))


def keeping(block):
    class Model(small.Net):
        def __init__(self):
            super().__init__(blocks=0)
            self.blocks = nn.ModuleList(block() for _ in range(2))
            for i, b in enumerate(self.blocks):
                b.number = i

        def forward(self, x, cache=None):
            x = self.inp(x)
            for b in self.blocks:
                x = b(x, cache)
            return self.out(x)

    return small.net(Model)


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
@pytest.mark.parametrize(("block", "made"), [(Keeps, Cache), (KeepsByName, Layer)])
def test_what_is_left_in_the_parts_of_an_object(block, made, mode):
    model = keeping(block)
    new = resfx.rewrite(copy.deepcopy(model), mode, args=(X,))
    a, b = made(), made()
    with torch.no_grad():
        for factor in (1, 2, 3, 4):
            assert torch.equal(model(factor * X, a), new(factor * X, b))
    if made is Cache:
        assert [layer.seen for layer in b.layers] == [4, 4]
        assert all(torch.equal(p.kept, q.kept) for p, q in zip(a.layers, b.layers, strict=True))
    else:
        assert sorted(vars(a)) == sorted(vars(b))


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
def test_what_is_left_where_nobody_can_watch_is_refused(mode):
    new = resfx.rewrite(keeping(KeepsByName), mode, args=(X,))
    with pytest.raises(resfx.errors.VariantError, match="leaves values in a SimpleNamespace"):
        new(X, SimpleNamespace())


def test_what_modules_without_residual_adds_leave_there_is_left():
    class Notes(nn.Linear):
        def forward(self, x, notes):
            notes.seen = x
            return super().forward(x)

    class Takes(small.Block):
        def __init__(self):
            super().__init__()
            self.up = Notes(8, 16)

        def forward(self, x, notes):
            return x + self.down(self.act(self.up(self.norm(x), notes)))

    class Model(small.Net):
        def __init__(self):
            super().__init__(blocks=0)
            self.blocks = nn.ModuleList(Takes() for _ in range(2))

        def forward(self, x):
            notes = SimpleNamespace()
            for block in self.blocks:
                x = block(x, notes)
            return self.out(x) + notes.seen

    model = small.net(Model)
    assert torch.equal(resfx.rewrite(copy.deepcopy(model), "ddl", args=(X,))(X), model(X))


def test_a_model_that_returns_what_it_wrote_into():
    class Writes(small.Block):
        def forward(self, x):
            x += self.down(self.act(self.up(self.norm(x))))
            return x

    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Writes() for _ in range(2))

        def forward(self, x):
            before = x
            for block in self.blocks:
                x = block(x)
            return x, before

    with pytest.raises(resfx.errors.CaptureError, match="returns a tensor that it was given and wrote into"):
        resfx.scan(small.net(Returns), args=(X.clone(),))
