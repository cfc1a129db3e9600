"""Mixers in seven real architectures: forward and every gradient against the hosts taken apart, in float64."""

from __future__ import annotations

import pytest
import torch
from hosts import BY_NAME
from hosts.made import randomise
from hosts.unrolled import HOSTS, host, plain, unroll
from references.sequence import pathway

import resfx

CONFIGS = {
    f"swa-{kind}-{placement}{'-rope' * rope}": resfx.ShortSWA(window=3, kind=kind, placement=placement, rope=rope)
    for kind in ("sliding", "chunk") for placement in ("residual", "branch") for rope in (False, True)
} | {
    "swa-two-heads": resfx.ShortSWA(window=4, heads=2), "swa-lean": resfx.ShortSWA(window=3, heads=1, head_dim=6),
    "swa-lean-rope": resfx.ShortSWA(window=3, heads=3, head_dim=2, kind="chunk", placement="branch", rope=True),
    "swa-published-branch": resfx.ShortSWA(window=3, placement="branch", start="published"),
    **{f"canon-{at}": resfx.Canon(at=at) for at in ("ABCD", "A", "B", "C", "D")},
    "canon-silu": resfx.Canon(bias=True, activation="silu", kernel=3),
    "conv": resfx.ShortConv(), "conv-published": resfx.ShortConv(residual=False, start="published"),
    "conv-k": resfx.ShortConv(on="k", activation="none"),
}  # fmt: skip
DEFAULT = {
    ("gpt2", "swa-sliding-residual"), ("gpt_neox", "swa-chunk-residual-rope"), ("vit", "swa-chunk-branch"),
    ("gpt2", "swa-lean"), ("bert", "canon-ABCD"), ("qwen3", "conv"),
}  # fmt: skip


def cases():
    for name in HOSTS:
        for label in CONFIGS:
            yield pytest.param(name, label, marks=() if (name, label) in DEFAULT else pytest.mark.matrix)


def given(name: str) -> dict:
    """One call in float64, its first text with two positions of padding on the left."""
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
              for k, v in BY_NAME[name].inputs(2, 7).items()}  # fmt: skip
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, :2] = 0
    return inputs


@pytest.mark.parametrize("name, label", list(cases()))
def test_forward_and_all_gradients(name, label):
    model, inputs, config = host(name, layers=2), given(name), CONFIGS[label]
    new = resfx.rewrite(model, config, kwargs=inputs, check=False)
    randomise(new, 0.3)
    parameters = dict(new.named_parameters())  # the host's own are shared with ``model``
    got = new(**inputs).logits
    want = unroll(name, model, inputs, pathway(name, config, new.new_parameters()))
    padded = "attention_mask" in inputs and name != "t5"
    real = inputs["attention_mask"].bool() if padded else torch.ones(got.shape[:-1], dtype=torch.bool)
    torch.testing.assert_close(got[real], want[real], atol=1e-10, rtol=1e-10)
    assert (want - unroll(name, model, inputs, plain))[real].abs().max() > 1e-4, "the mixers must act"
    weight = torch.cos(torch.arange(want[real].numel(), dtype=torch.float64)).view_as(want[real])
    grads = [torch.autograd.grad((y[real] * weight).sum(), list(parameters.values()), allow_unused=True)
             for y in (got, want)]  # fmt: skip
    for each, a, b in zip(parameters, *grads, strict=True):
        assert (a is None) == (b is None), each
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8, msg=lambda m, n=each: f"{n}: {m}")
    assert all(g is not None and g.abs().max() > 0 for n, g in zip(parameters, grads[0], strict=True) if "resfx." in n)
