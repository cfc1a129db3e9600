"""Widened streams compiled, exported, saved and generating; the whole table of hosts in the matrix."""

from __future__ import annotations

import copy

import matrix
import pytest
import torch
from hosts import BY_NAME, WIDTH, tokens
from hosts.made import randomise, rewritten
from hosts.wide import CC, METHODS, TC, Mlp, equal, loss_of
from torch import nn

import resfx
from resfx import MHC, HyperConnections

LOWERED = ("mhc", "hyper", "channel", "token", "write", "erase")


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("host", matrix.HOSTS)
@pytest.mark.parametrize("method", LOWERED)
@pytest.mark.parametrize("check", [matrix.compiles, matrix.onnx, matrix.save, matrix.generate])
def test_every_lowering_on_every_host(check, method, host):
    _, kept, inputs = rewritten(host, METHODS[method])
    new = copy.deepcopy(kept)
    randomise(new)
    assert check(BY_NAME[host], new, inputs) in ("yes", "-")


@pytest.mark.parametrize("method", [pytest.param("mhc", marks=pytest.mark.matrix), "token"])
def test_generate_with_its_cache(method):
    model, kept, _ = rewritten("llama", METHODS[method])
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0  # left padding
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **options), kept.generate(ids, **options))
    new = copy.deepcopy(kept)
    randomise(new, 2.0 if method == "mhc" else 0.5)
    cached = new.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, new.generate(ids, use_cache=False, **options))
    assert not torch.equal(cached, model.generate(ids, **options))


COMPILED = ("routed", "three", "hyper", "mhc", "token", "channel")


@pytest.mark.parametrize(
    ("method", "dynamic"), [("hyper", None), *(pytest.param(m, True, marks=pytest.mark.matrix) for m in COMPILED)]
)
def test_compiles_whole(method, dynamic):
    new = copy.deepcopy(rewritten("nanogpt", METHODS[method])[1])
    randomise(new, 0.3)
    idx = tokens(2, 7)
    run = torch.compile(new, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    want, got = new(idx), run(idx)
    assert (want - got).abs().max() <= 1e-5 * want.abs().max()
    parameters = list(new.new_parameters().values())
    a = torch.autograd.grad(loss_of(want), parameters)
    b = torch.autograd.grad(loss_of(got), parameters)
    assert all((x - y).abs().max() <= 1e-4 * x.abs().max() + 1e-6 for x, y in zip(a, b, strict=True))


@pytest.mark.every(2)
@pytest.mark.parametrize("method", ["mhc", "token"])
def test_save_and_load(method, tmp_path):
    model, kept, inputs = rewritten("gpt2", METHODS[method])
    new = copy.deepcopy(kept)
    randomise(new, 0.3)
    resfx.save(new, tmp_path / "saved")
    again = resfx.load(tmp_path / "saved", model)
    assert again._resfx.applications[0].method == METHODS[method]
    assert equal(new(**inputs), again(**inputs))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(
    "config",
    [MHC(n=2, sinkhorn_iterations=2, sinkhorn_newton=1), pytest.param(HyperConnections(), marks=pytest.mark.matrix),
     pytest.param(TC, marks=pytest.mark.matrix), pytest.param(CC, marks=pytest.mark.matrix)],
)  # fmt: skip
def test_onnx_runtime_computes_the_same(config, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 6, WIDTH)
    new = resfx.rewrite(nn.Sequential(Mlp(False), Mlp(False)).eval(), config, args=(x,))
    randomise(new, 0.3)
    exported = resfx.export.to_onnx(new, tmp_path / "wide.onnx", args=(x,))
    assert set(exported.differences) == {"onnxruntime", "reference"}
    assert max(exported.differences.values()) < 1e-4
