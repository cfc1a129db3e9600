"""Routes in seven real architectures: forward and every gradient against the hosts taken apart, in float64."""

from __future__ import annotations

import pytest
import torch
from hosts import BY_NAME
from hosts.made import randomise
from hosts.unrolled import HOSTS, host, plain, unroll
from references.agree import hold_gradients
from references.route import pathway

import resfx

CONFIGS = {
    "residual": resfx.ValueResidual(), "residual-published": resfx.ValueResidual(start="published"),
    "heads": resfx.ValueResidual(per_head=True, last=1), "dense": resfx.ValueResidual(form="dense", per_head=True),
    "fixed": resfx.ValueResidual(learned=False, first=2, own=1, start="published"),
    "shared": resfx.ValueResidual(form="shared"), "shared-published": resfx.ValueResidual(form="shared",
                                                                                         start="published"),
    "lime": resfx.LIMe(), "lime-published": resfx.LIMe(start="published"),
    "table": resfx.ValueEmbedding(channels=5), "table-published": resfx.ValueEmbedding(start="published"),
    "scalar": resfx.ValueEmbedding(gate="scalar", layers="all"),
}  # fmt: skip
DEFAULT = {
    ("vit", "residual"), ("vit", "dense"), ("vit", "shared"), ("qwen3", "lime"), ("gpt_neox", "lime-published"),
    ("bert", "table"), ("gpt2", "scalar"),
}  # fmt: skip


def cases():
    for name in HOSTS:
        for label, config in CONFIGS.items():
            if not (name == "vit" and isinstance(config, resfx.ValueEmbedding)):  # patches are no tokens
                yield pytest.param(name, label, marks=() if (name, label) in DEFAULT else pytest.mark.matrix)


@pytest.mark.every(2)
@pytest.mark.parametrize("name, label", list(cases()))
def test_forward_and_all_gradients(name, label):
    model, config, inputs = host(name), CONFIGS[label], BY_NAME[name].inputs(2, 6)
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    new = resfx.rewrite(model, config, kwargs=inputs, check=False)
    randomise(new, 0.3)
    parameters = dict(new.named_parameters())  # the host's own are shared with ``model``
    ids = inputs.get("input_ids")
    tokens = {"": ids, "encoder": ids, "decoder": inputs.get("decoder_input_ids")}
    got = new(**inputs).logits
    want = unroll(name, model, inputs, pathway(config, dict(new.new_parameters()), tokens))
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    assert (want - unroll(name, model, inputs, plain)).abs().max() > 1e-4, "the routes must act"
    wanted = {n: p for n, p in parameters.items() if p.requires_grad}
    hold_gradients(got, want, wanted)
