"""Captures made after the rewrite: by several threads, in any number, and of models that write to themselves."""

from __future__ import annotations

import enum
import threading

import pytest
import torch
from hosts.small import Net, at_once, batch, net
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import resfx
from resfx.runtime import units


class Writing(nn.Module):
    """Makes its buffer when it is first needed, and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.body, self.seen = Net(), []
        self.register_buffer("scale", None, persistent=False)

    def forward(self, x):
        if self.scale is None:
            self.scale = torch.full((8,), 0.5)
        self.last = x
        self.seen.append(x)
        return self.body(x) * self.scale


class Stepped(nn.Module):
    """Owns an add beside those of its body, and takes a number."""

    def __init__(self):
        super().__init__()
        self.body, self.last = Net(), nn.Linear(8, 8)

    def forward(self, x, step=0.5):
        h = self.body(x)
        return h + self.last(h) * (1.0 + step)


class Scaled(Stepped):
    """Owns no add."""

    def forward(self, x, step=0.5):
        return self.body(x) * (1.0 + step)


def test_what_a_traced_forward_writes_is_taken_back():
    model = Writing().eval()
    resfx.scan(model, args=(batch(),))
    assert model.scale is None and model.seen == [] and not hasattr(model, "last")
    new = resfx.rewrite(model, "ddl", args=(batch(),))
    new(batch()[:1])  # a capture of its own
    held = [v for m in new.modules() for v in (*vars(m).values(), *m._buffers.values())]
    assert not any(isinstance(v, FakeTensor) for v in (*held, *new.seen))
    assert model.scale is None and model.seen == []


def test_threads_that_need_captures_at_once():
    """While one thread traces, torch says to all that it compiles; GELU rounds by whether oneDNN is there."""
    model = net()
    new, found = resfx.rewrite(model, "ddl", args=(batch(),)), []

    def call(length):
        x = torch.randn(1, length, 8)
        found.append((x, new(x)))

    at_once(call, (1, 4, 1, 6, 7, 2))
    assert len(found) == 6 and not torch.compiler.is_exporting()
    for x, out in found:
        assert torch.equal(out, model(x)) and torch.equal(new(x), out)


def test_a_capture_takes_no_kernels_from_other_threads():
    """A switch of torch's backends is one of the whole process: what another thread computes would round otherwise."""
    switches = (torch.backends.mkldnn, torch.backends.cudnn)
    before, seen, done = tuple(s.enabled for s in switches), set(), threading.Event()

    def watch():
        while not done.is_set():
            seen.add(tuple(s.enabled for s in switches))

    watcher = threading.Thread(target=watch)
    watcher.start()
    resfx.rewrite(net(), "ddl", args=(batch(),))(batch()[:1])
    done.set()
    watcher.join()
    assert seen == {before}


def test_a_trace_changes_no_module_of_another_thread():
    """Where a traced model has a module twice, torch hands out proxies in place of modules, to all threads."""
    other, seen, done = net(), set(), threading.Event()

    class Twice(Net):
        def __init__(self):
            super().__init__()
            self.again = self.blocks[0]

    def watch():
        while not done.is_set():
            seen.add(type(other.inp))

    watcher = threading.Thread(target=watch)
    watcher.start()
    resfx.rewrite(net(Twice), "ddl", args=(batch(),))
    done.set()
    watcher.join()
    assert seen == {nn.Linear}


def test_a_number_that_differs_in_every_call_is_named_and_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(units, "MOST", 5)
    model = Stepped().eval()
    new = resfx.rewrite(model, "ddl", args=(batch(), 0.5))
    once = [line for line in new.variants if not line.startswith("(root)")]
    for k in range(1, units.MOST):
        assert torch.equal(new(batch(), k / 128), model(batch(), k / 128))
    said = f"Stepped has been captured {units.MOST} times: .*step.* differs from call to call"
    with pytest.warns(UserWarning, match=said):
        new(batch(), 0.75)
    assert sum(line.startswith("(root)") for line in new.variants) == units.MOST
    assert [line for line in new.variants if not line.startswith("(root)")] == once, "the blocks take no number"
    assert torch.equal(new(batch(), 0.75), model(batch(), 0.75))


def test_a_number_that_only_the_users_own_code_reads_is_never_captured():
    model = Scaled().eval()
    new = resfx.rewrite(model, "ddl", args=(batch(), 0.5))
    before = new.variants
    for k in range(units.MOST + 2):
        assert torch.equal(new(batch(), k / 128), model(batch(), k / 128))
    assert new.variants == before


def test_parameters_of_a_patched_forward_get_their_gradients():
    model = net()
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
    plain = layer.forward
    layer.forward = lambda x: plain(x) * 2
    new = resfx.rewrite(model, "ddl", args=(batch(),))
    model(batch()).square().sum().backward()
    want, layer.weight.grad = layer.weight.grad, None
    new(batch()).square().sum().backward()
    assert torch.equal(layer.weight.grad, want)


def test_exporting_a_call_that_was_not_seen_before():
    model = Stepped().eval()
    new = resfx.rewrite(model, "ddl", args=(batch(),))
    program = torch.export.export(new, (batch(),), {"step": 2.0}, strict=False)
    assert torch.equal(program.module()(batch(), step=2.0), model(batch(), step=2.0))


def test_a_model_that_installs_hooks_in_its_first_call_has_each_once():
    class Installing(Net):
        def forward(self, x):
            if not hasattr(self, "collected"):
                self.collected = []
                self.out.register_forward_hook(lambda *_: self.collected.append(1))
            self.collected.clear()
            return super().forward(x), len(self.blocks)

    model = net(Installing)
    resfx.rewrite(model, "ddl", args=(batch(),))
    assert not hasattr(model, "collected") and not model.out._forward_hooks
    model(batch())
    assert len(model.out._forward_hooks) == 1


def test_an_export_records_nothing_of_a_capture_that_it_needs():
    new = resfx.rewrite(net(), "ddl", args=(batch(),))
    with torch.no_grad():
        program = torch.export.export(new, (batch()[:1],), strict=False)  # a size of 1 was not seen before
    assert not [n for n in program.graph.nodes if "set_grad" in str(n.target)]


def test_an_attribute_that_is_one_of_an_enumeration():
    class Kind(enum.Enum):
        DOUBLE = 2

    class Chosen(Net):
        def __init__(self):
            super().__init__()
            self.kind = Kind.DOUBLE

        def forward(self, x):
            return super().forward(x) * self.kind.value

    model = net(Chosen)
    new = resfx.rewrite(model, "ddl", args=(batch(),))
    for x in (batch(), batch()[:1]):
        assert torch.equal(new(x), model(x))
    assert type(model.kind) is Kind
