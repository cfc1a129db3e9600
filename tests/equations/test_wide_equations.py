"""Widened streams against the papers' equations in float64, forward and every gradient, on seven architectures."""

from __future__ import annotations

import functools

import pytest
import torch
from hosts import BY_NAME
from hosts.made import randomise
from hosts.unrolled import HOSTS, host, unroll
from references import wide as wide_references

import resfx
from resfx import DDL, MHC, AltUp, FracConnections, HyperConnections

CC = {"value_channels": 4}
TC = {"value_channels": 4, "compress": "token"}
FORMS = {
    "hyper": HyperConnections(),
    "hyper static": HyperConnections(n=3, dynamic=False),
    "hyper linear": HyperConnections(n=2, tanh=False, norm="rms"),
    "hyper learned": HyperConnections(n=3, readout="learned"),
    "hyper published": HyperConnections(start="published"),
    "mhc": MHC(sinkhorn_newton=12),  # to the last digit, whatever the logits
    "mhc rounds": MHC(n=3, sinkhorn_iterations=7, sinkhorn_newton=0, readout="learned"),
    "mhc identity": MHC(mixing="identity"),
    "mhc permutation": MHC(n=3, mixing="permutation"),
    "mhc kronecker": MHC(mixing="kronecker"),
    "mhc orthogonal": MHC(mixing="orthogonal"),
    "altup": AltUp(),
    "altup same": AltUp(n=3, choose="same", readout="learned"),
    "altup published": AltUp(n=3, start="published"),
    "altup prediction": AltUp(n=3, reads="prediction"),
    "altup gemma": AltUp.gemma3n(),
    "altup routed": AltUp(n=3, dynamic=True),
    "frac": FracConnections(),
    "frac static": FracConnections(m=2, dynamic=False),
    "mhc published": MHC(n=2, start="published", sinkhorn_newton=12),
    "channel": DDL(**CC, embed_conv=False),
    "channel embed": DDL(**CC, embed_conv=True),
    "channel sublayer": DDL(**CC, embed_conv=False, share_compressor="sublayer", preserve="erase"),
    "channel write": DDL(value_channels=3, embed_conv=False, write_only=True, mix_per_channel=True),
    "channel published": DDL(value_channels=3, embed_conv=True, start="published", write_only=True),
    "token": DDL(**TC, embed_conv=False),
    "token embed": DDL(**TC, embed_conv=True, share_compressor="sublayer"),
    "token published": DDL.repository(value_channels=2, compress="token", embed_conv=True, start="published"),
}
DEFAULT = [
    ("hyper", "vit"), ("mhc", "llama"), ("mhc permutation", "vit"), ("frac", "gpt_neox"), ("altup", "bert"),
    ("channel", "bert"), ("channel sublayer", "vit"), ("token", "gpt2"), ("token embed", "qwen3"),
]  # fmt: skip
MATRIX = [(form, name) for form in FORMS for name in HOSTS if (form, name) not in DEFAULT]


@functools.cache
def model_and_inputs(name):
    model = host(name, layers=2)
    inputs = BY_NAME[name].inputs(2, 6)
    double = lambda v: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
    return model, {k: double(v) for k, v in inputs.items()}


@pytest.mark.parametrize(
    ("form", "name"),
    [pytest.param(*c, id="-".join(c)) for c in DEFAULT]
    + [pytest.param(*c, id="-".join(c), marks=pytest.mark.matrix) for c in MATRIX],
)
def test_forward_and_every_gradient_against_the_papers(form, name):
    config = FORMS[form]
    model, inputs = model_and_inputs(name)
    new = resfx.rewrite(model, config, kwargs=inputs)
    assert len(new.report.changed) == len(new.report.sites) == BY_NAME[name].sites
    randomise(new, 0.3)
    parameters = dict(new.named_parameters())
    got = new(**inputs).logits
    want = unroll(name, new, inputs, wide_references.pathway(config, config.name, dict(new.new_parameters())))
    assert (got - model(**inputs).logits).abs().max() > 1e-3, "the rewrite must act"
    assert (got - want).abs().max() <= 1e-12 * want.abs().max()
    loss = lambda y: (y * torch.cos(torch.arange(y.numel()) + 1.0).view(y.shape)).sum()
    a, b = (torch.autograd.grad(loss(y), list(parameters.values()), allow_unused=True) for y in (got, want))
    for key, x, y in zip(parameters, a, b, strict=True):
        assert (x is None) == (y is None), key
        if y is None:
            assert not key.startswith("resfx."), key
            continue
        assert (x - y).abs().max() <= 1e-10 * y.abs().max() + 1e-12 * want.abs().max(), key
        assert not key.startswith("resfx.") or y.abs().max() > 0, key
