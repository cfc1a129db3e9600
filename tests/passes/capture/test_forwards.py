"""A ``forward`` put in the place of a module's own, before a rewrite and after it."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from hosts.small import batch, net

import resfx
from resfx.errors import VariantError


def around(module):
    run = module.forward
    module.forward = lambda *args, **kwargs: run(*args, **kwargs) * 2


def around_with_defaults(module):
    def forward(hidden, gain=2.0, run=module.forward):
        return run(hidden) * gain

    module.forward = forward


def bound(module):
    module.forward = types.MethodType(lambda self, x: x + 2 * self.down(self.act(self.up(self.norm(x)))), module)


def partial(module):
    module.forward = functools.partial(lambda run, x: run(x) * 2, module.forward)


PATCHES = [around, around_with_defaults, bound, partial]


def calls(model):
    return [model(batch()), model(batch()[:, :1]), model.train()(batch(2, 3)), model.eval()(batch(2, 3))]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(calls(a), calls(b), strict=True))


@pytest.mark.every(3)
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("mode", ["ddl", "attnres"])
def test_before_a_rewrite_it_is_rewritten(patch, mode):
    model = net()
    patch(model.blocks[0])
    patched = model.blocks[0].forward
    new = resfx.rewrite(model, mode, args=(batch(),))
    assert same(new, model) and model.blocks[0].forward is patched
    with torch.no_grad():
        for p in new.new_parameters().values():
            p.add_(0.3)
    assert not torch.equal(new(batch()), model(batch()))
    with resfx.disabled(new):
        assert same(new, model)
    assert same(resfx.original(new), model)
    assert new.double()(batch().double()).dtype == torch.float64 and model.inp.weight.dtype == torch.float32


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
def test_after_a_rewrite_it_is_called_around_it(mode):
    model = net()
    new = resfx.rewrite(net(), mode, args=(batch(),))
    for m in (model, new):
        around(m.blocks[0])
        around(m)
    assert same(new, model)  # captures that were made since, too


def test_a_hook_of_accelerate_is_refused_by_name():
    accelerate = pytest.importorskip("accelerate")
    model = net()
    accelerate.hooks.add_hook_to_module(model.blocks[0], accelerate.hooks.AlignDevicesHook("cpu"))
    with pytest.raises(VariantError, match="remove_hook_from_submodules"):
        resfx.rewrite(model, "ddl", args=(batch(),))


@pytest.mark.parametrize("place", ["blocks.0.act", "out"])
def test_modules_of_torchscript_are_called_as_they_are(place):
    model = net()
    kind = torch.jit.script if place == "out" else lambda m: torch.jit.trace(m, torch.randn(2, 16))
    model.set_submodule(place, kind(model.get_submodule(place)))
    new = resfx.rewrite(model, "ddl", args=(batch(),))
    assert same(new, model)
