"""Modules whose whole call is one C++ kernel: the same numbers as step by step, and nobody is passed over."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import resfx
from resfx.methods.base import Place
from resfx.methods.depth.attn_res import AttnResRead
from resfx.methods.depth.base import DepthPlace
from resfx.methods.learned import Linear
from resfx.ops import native

D, ROWS = 37, (2, 3)
PLACE = {"width": D, "context_width": D, "kind": "mlp", "depth": 1, "device": torch.device("cpu")}
TYPES = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2e-2}
SITES = {
    "paper": resfx.DDL(), "published": resfx.DDL(start="published"), "repository": resfx.DDL.repository(),
    "erase": resfx.DDL(preserve="erase"), "features": resfx.DDL(mix_per_channel=True),
    "sublayer": resfx.DDL(target="sublayer", target_bias=True), "constant": resfx.DDL(target="constant"),
}  # fmt: skip
WIDE = {"sinkhorn": resfx.MHC(), "three": resfx.MHC(n=3, start="published"), "none": resfx.MHC(mixing="identity")}


@pytest.fixture
def joined(library, monkeypatch):
    """Runs a call with kernels: its result, and whether one kernel gave it."""
    monkeypatch.setenv("RESFX_NATIVE", "1")
    names, run = [], native.Library.run
    monkeypatch.setattr(native.Library, "run", lambda self, name, *a: names.append(name) or run(self, name, *a))

    def call(module, *args):
        monkeypatch.setattr(native, "built_kernels", lambda: library)
        native._library.cache_clear()
        names.clear()
        with torch.no_grad():
            done = module(*args)
        monkeypatch.setattr(native, "built_kernels", lambda: None)
        native._library.cache_clear()
        return done, list(names)

    monkeypatch.setattr(native, "built_kernels", lambda: None)
    native._library.cache_clear()
    yield call
    native._library.cache_clear()


def moved(module):
    """Every parameter away from its start."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module


def close(got, module, args, dtype):
    with torch.no_grad():
        want = module(*args)
    for a, b in zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]:
        if isinstance(a, tuple):
            close_all(a, b, dtype)
        else:
            close_all((a,), (b,), dtype)


def close_all(got, want, dtype):
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=TYPES[dtype], atol=TYPES[dtype])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("form", SITES)
@pytest.mark.parametrize("given", [False, True], ids=["sum", "total"])
def test_a_delta_site(form, dtype, given, joined):
    site = moved(SITES[form].build(Place(**PLACE, dtype=dtype)))
    x, f, c, total = torch.randn(4, *ROWS, D, dtype=dtype).unbind()
    args = (x, f, c, total if given else None)
    got, names = joined(site, *args)
    assert names == ["DeltaSite"]
    close(got, site, args, dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("form", WIDE)
def test_a_manifold_read(form, dtype, joined):
    method = WIDE[form]
    read = moved(method.build_stream([Place(**PLACE, dtype=dtype)] * 3).reads[1])
    args = (torch.randn(*ROWS, method.n, D, dtype=dtype),)
    got, names = joined(read, *args)
    assert names == ["ManifoldRead"]
    close(got, read, args, dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("start", ["preserve", "published"])
def test_a_read_over_depth(start, dtype, joined):
    place = DepthPlace(**PLACE, dtype=dtype, read=2, sources=3, last=False, outputs=1)
    read = moved(AttnResRead(resfx.AttnRes(start=start), place))
    *sources, x = torch.randn(4, *ROWS, D, dtype=dtype).unbind()
    got, names = joined(read, sources, x)
    assert names == ["GainedRead"]
    close(got, read, (sources, x), dtype)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("name", ["mix", "query", "pre", "gate.weight"])
def test_parametrised_parameters_are_read_as_what_they_stand_for(name, joined):
    x, f, c, s = torch.randn(4, *ROWS, D).unbind()
    if name == "query":
        place = DepthPlace(**PLACE, dtype=torch.float32, read=2, sources=3, last=False, outputs=1)
        module, args = AttnResRead(resfx.AttnRes(), place), ([f, c, s], x)
    elif name == "pre":
        module = resfx.MHC().build_stream([Place(**PLACE, dtype=torch.float32)] * 3).reads[1]
        args = (torch.randn(*ROWS, 4, D),)
    else:
        module, args = resfx.DDL().build(Place(**PLACE, dtype=torch.float32)), (x, f, c)
    owner, _, last = name.rpartition(".")
    nn.utils.parametrize.register_parametrization(moved(module).get_submodule(owner), last, Twice())
    got, names = joined(module, *args)
    assert bool({"DeltaSite", "GainedRead", "ManifoldRead"} & set(names)) == (name != "gate.weight")
    close(got, module, args, torch.float32)


def test_equal_channels_are_read_exactly(joined):
    """The preserving start, whatever the state: the excess of the weights is taken off to the last bit."""
    for n in (2, 3, 4, 5):
        read = resfx.MHC(n=n).build_stream([Place(**PLACE, dtype=torch.float32)] * 3).reads[1]
        x = torch.randn(*ROWS, D)
        got, names = joined(read, x.unsqueeze(-2).expand(*ROWS, n, D))
        assert names == ["ManifoldRead"] and torch.equal(got[0], x)
        assert torch.equal(got[1][0], torch.ones(*ROWS, n))


class Adapted(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 1


def test_hooks_and_adapters_of_a_gate_are_not_passed_over(joined):
    site = moved(resfx.DDL().build(Place(**PLACE, dtype=torch.float32)))
    x, f, c = torch.randn(3, *ROWS, D).unbind()
    plain, _ = joined(site, x, f, c)
    seen = []
    handle = site.gate.register_forward_hook(lambda m, a, out: seen.append(out.shape) or out + 1)
    hooked, names = joined(site, x, f, c)
    assert seen == [(*ROWS, 1)] and "DeltaSite" not in names and not torch.allclose(hooked, plain)
    handle.remove()
    site.gate = Adapted(site.gate)
    adapted, names = joined(site, x, f, c)
    assert "DeltaSite" not in names
    torch.testing.assert_close(adapted, hooked)


def test_autocast_and_gradients_go_step_by_step(joined):
    site = moved(resfx.DDL().build(Place(**PLACE, dtype=torch.float32)))
    x, f, c = torch.randn(3, *ROWS, D).unbind()
    with torch.autocast("cpu", torch.bfloat16):
        _, names = joined(site, x, f, c)
    assert "DeltaSite" not in names
    assert isinstance(site.gate, Linear) and site(x, f, c).requires_grad
