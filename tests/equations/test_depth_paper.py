"""Forward and every gradient of the depth methods against the papers' equations, on seven real architectures.

In float64, with three blocks in every stream and the new parameters off their start. The rest of the product with
``-m matrix``.
"""

from __future__ import annotations

import functools

import pytest
import torch
from hosts import BY_NAME
from hosts.made import randomise
from hosts.unrolled import HOSTS, host, unroll
from references import depth as ref

import resfx

CASES = {
    "attnres": (resfx.AttnRes, ref.attn_res, {}),
    "attnres-block": (resfx.AttnRes, ref.attn_res, {"block": 4}),
    "attnres-phases": (resfx.AttnRes, ref.attn_res, {"block": 4, "two_phase": True}),
    "attnres-phases-2": (resfx.AttnRes, ref.attn_res, {"block": 2, "two_phase": True}),
    "attnres-normalized": (resfx.AttnRes, ref.attn_res, {"block": 2, "normalized": True}),
    "delta": (resfx.DeltaAttnRes, ref.delta, {}),
    "delta-block": (resfx.DeltaAttnRes, ref.delta, {"block": 2}),
    "delta-null": (resfx.DeltaAttnRes, ref.delta, {"block": 2, "partial": False, "null": True}),
    "denseformer": (resfx.DenseFormer, ref.dense, {}),
    "denseformer-2": (resfx.DenseFormer, ref.dense, {"dilation": 2}),
    "denseformer-1x3": (resfx.DenseFormer, ref.dense, {"dilation": 1, "period": 3}),
    "elc": (resfx.ELC, ref.elc, {}),
    "elc-normalized": (resfx.ELC, ref.elc, {"variant": "normalized"}),
    "elc-weighted": (resfx.ELC, ref.elc, {"variant": "weighted"}),
    "elc-base": (resfx.ELC, ref.elc, {"variant": "base"}),
    "dca": (resfx.DCA, ref.dca, {}),
    "dca-1": (resfx.DCA, ref.dca, {"k": 1}),
    "dca-2": (resfx.DCA, ref.dca, {"k": 2}),
    "dca-printed": (resfx.DCA, ref.dca, {"form": "printed", "w_std": 0.1}),
    "mudd": (resfx.MUDD, ref.mudd, {}),
    "mudd-v": (resfx.MUDD, ref.mudd, {"streams": "v"}),
    "mudd-rq": (resfx.MUDD, ref.mudd, {"streams": "rq", "hidden": 7}),
    "mudd-2x2": (resfx.MUDD, ref.mudd, {"dilation": 2, "period": 2}),
    "mudd-window": (resfx.MUDD, ref.mudd, {"window": 2}),
    "mudd-prepost": (resfx.MUDD, ref.mudd, {"prepost": True}),
    "depth-read": (resfx.DepthRead, ref.depth_read, {"window": 2, "heads": 4}),
    "depth-read-full": (resfx.DepthRead, ref.depth_read, {"window": None, "dim": 8}),
    "depth-read-1": (resfx.DepthRead, ref.depth_read, {"window": 1}),
    "depth-read-shared": (resfx.DepthRead, ref.depth_read, {"shared": True}),
    "depth-read-stream": (resfx.DepthRead, ref.depth_read, {"at": "stream", "norm": False}),
    "lambdas": (resfx.Lambdas, ref.lambdas, {}),
    "lambdas-all": (resfx.Lambdas, ref.lambdas, {"skips": ((0, 1), (1, 2)), "backout": True, "x0": False}),
    "vertical": (resfx.VerticalAttention, ref.vertical, {}),
    "vertical-content": (resfx.VerticalAttention, ref.vertical, {"routing": "content"}),
}
NEEDS_A_SUM = (resfx.AttnRes, resfx.DCA, resfx.ELC)
BY_DEFAULT = """
    attnres-gpt2-preserve attnres-block-t5-published attnres-phases-2-vit-preserve delta-vit-preserve
    delta-null-qwen3-published denseformer-llama-preserve denseformer-1x3-vit-published elc-vit-preserve
    elc-normalized-gpt_neox-published dca-gpt2-preserve dca-1-vit-preserve mudd-bert-published mudd-2x2-vit-preserve
    depth-read-stream-bert-preserve depth-read-shared-vit-preserve lambdas-vit-published lambdas-all-bert-preserve
    vertical-gpt2-preserve vertical-content-vit-published elc-base-llama-published depth-read-qwen3-preserve
    dca-gpt_neox-published delta-block-t5-preserve
""".split()
PRODUCT = [
    pytest.param(*CASES[case], name, start, id=f"{case}-{name}-{start}",
                 marks=[] if f"{case}-{name}-{start}" in BY_DEFAULT else pytest.mark.matrix)
    for case in CASES for name in HOSTS for start in ("preserve", "published")
    if (case, start) != ("dca-printed", "preserve")  # refused
]  # fmt: skip


def test_the_default_slice_has_every_method_and_every_host_twice():
    slice_ = [p.values for p in PRODUCT if not p.marks]
    assert len(slice_) == len(BY_DEFAULT), "a name in BY_DEFAULT is no case"
    methods, hosts = [v[0] for v in slice_], [v[3] for v in slice_]
    assert all(methods.count(cls) >= 2 for cls, *_ in CASES.values())
    assert all(hosts.count(name) >= 2 for name in HOSTS)


@functools.cache
def double(name):
    """A host and its inputs in float64."""
    inputs = BY_NAME[name].inputs(2, 5)
    return host(name), {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}


@pytest.mark.parametrize(("cls", "reference", "options", "name", "start"), PRODUCT)
def test_forward_and_every_gradient_follow_the_paper(cls, reference, options, name, start):
    model, inputs = double(name)
    method = cls(start=start, **options)
    if name == "bert" and start == "published" and cls in NEEDS_A_SUM:
        with pytest.raises(resfx.errors.NoSitesError, match="a norm or an activation follows every add"):
            resfx.rewrite(model, method, kwargs=inputs, check=False)
        return
    torch.manual_seed(5)
    new = resfx.rewrite(model, method, kwargs=inputs, check=False)
    randomise(new, 0.3)
    pathway = lambda stream, x: reference(stream, x, ref.Bank(new, cls.name, stream.parallel), start, **options)
    got, want = new(**inputs).logits, unroll(name, model, inputs, pathway)
    assert (got - model(**inputs).logits).abs().max() > 1e-3, "the read must act, or this test shows nothing"
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)

    weights = torch.cos(torch.arange(want.numel(), dtype=want.dtype)).view(want.shape)
    added = new.new_parameters()
    parameters = {**dict(model.named_parameters()), **added}
    grads = [torch.autograd.grad((y * weights).sum(), list(parameters.values()), allow_unused=True)
             for y in (got, want)]  # fmt: skip
    reached = 0
    for key, a, b in zip(parameters, *grads, strict=True):
        assert (a is None) == (b is None), key
        if a is not None:
            reached += key in added
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max()) + 1e-12, msg=key)
    assert reached == len(added) > 0
