"""Learned adds in seven real architectures: forward and every gradient against the hosts taken apart, in float64."""

from __future__ import annotations

import pytest
import torch
from hosts import BY_NAME
from hosts.made import randomise
from hosts.unrolled import HOSTS, host, plain, unroll
from references.agree import hold_gradients
from references.site import pathway

import resfx
from resfx import DepthScaled, LAuReL, LayerScale, ReZero

CONFIGS = {
    "layer-scale": LayerScale(), "layer-scale-published": LayerScale(start="published", init=0.1),
    "rezero": ReZero(), "rezero-published": ReZero(start="published"),
    "laurel": LAuReL(rank=3), "laurel-published": LAuReL(rank=3, start="published", bound="softmax"),
    "laurel-softmax": LAuReL(rank=2, bound="softmax", per_feature=True), "laurel-rw": LAuReL(rank=0, bound="none"),
    "laurel-lr": LAuReL(rank=4, weights=False),
    "depth-scaled": DepthScaled(), "depth-scaled-published": DepthScaled(start="published"),
}  # fmt: skip
DEFAULT = {
    ("vit", "layer-scale"), ("bert", "rezero"), ("bert", "laurel"), ("vit", "laurel-softmax"), ("vit", "depth-scaled"),
}  # fmt: skip
CASES = [
    pytest.param(name, label, marks=() if (name, label) in DEFAULT else pytest.mark.matrix)
    for name in HOSTS for label in CONFIGS
]  # fmt: skip


@pytest.mark.parametrize("name, label", CASES)
def test_forward_and_all_gradients(name, label):
    model, config, inputs = host(name, layers=2), CONFIGS[label], BY_NAME[name].inputs(2, 6)
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    new = resfx.rewrite(model, config, kwargs=inputs, check=False)
    randomise(new, 0.3)
    parameters = dict(new.named_parameters())
    got, want = new(**inputs).logits, unroll(name, model, inputs, pathway(new, config))
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    assert (want - unroll(name, model, inputs, plain)).abs().max() > 1e-4, "the adds must act"
    hold_gradients(got, want, parameters)


@pytest.mark.parametrize("config", [LayerScale(start="published"), ReZero(start="published")], ids=lambda c: c.name)
def test_published_gains_shut_the_branches(config):
    place = resfx.methods.base.Place(width=6, context_width=6, kind="mlp", depth=3, dtype=torch.float32,
                                     device=torch.device("cpu"))  # fmt: skip
    x, f = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    added = config.build(place)(x, f, None) - x
    assert added.abs().max() <= 1.1e-5 * f.abs().max()


def test_depth_scaled_adds_keep_the_variance():
    x = torch.randn(4, 512)
    for depth in range(40):
        place = resfx.methods.base.Place(width=512, context_width=None, kind="mlp", depth=depth, dtype=torch.float32,
                                         device=torch.device("cpu"))  # fmt: skip
        x = DepthScaled(start="published").build(place)(x, torch.randn(4, 512), None)
    assert 0.9 < x.var() < 1.1


@pytest.mark.parametrize("options", [{"rank": -1}, {"rank": 0, "weights": False}])
def test_laurel_refuses_what_learns_nothing(options):
    with pytest.raises(ValueError, match="rank"):
        LAuReL(**options)
