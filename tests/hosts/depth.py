"""What tests of depth methods on real architectures share: configs, pairs of method and host, rewritten hosts."""

from __future__ import annotations

import functools

import pytest
import torch
from hosts import BY_NAME

import resfx
from resfx.passes.check import tensors_of

METHODS = {
    "denseformer": resfx.DenseFormer(), "attnres": resfx.AttnRes(), "attnres-block": resfx.AttnRes(block=2),
    "attnres-phases": resfx.AttnRes(block=2, two_phase=True),
    "delta": resfx.DeltaAttnRes(), "delta-block": resfx.DeltaAttnRes(block=2, null=True),
    "depth-read": resfx.DepthRead(window=2, heads=2), "depth-read-full": resfx.DepthRead(window=None, shared=True),
    "depth-read-stream": resfx.DepthRead(window=2, at="stream"), "elc": resfx.ELC(),
    "elc-normalized": resfx.ELC(variant="normalized"), "elc-weighted": resfx.ELC(variant="weighted"),
    "elc-base": resfx.ELC(variant="base"),
    "dca": resfx.DCA(), "dca-1": resfx.DCA(k=1), "mudd": resfx.MUDD(), "mudd-prepost": resfx.MUDD(prepost=True),
    "vertical": resfx.VerticalAttention(),
}  # fmt: skip
HOST_NAMES = ["gpt2", "llama", "qwen3", "gemma2", "gpt_neox", "falcon", "bert", "vit", "t5", "bart", "nanogpt"]


def pairs(*chosen, hosts=HOST_NAMES):
    """Every method on every host; those not chosen run with ``-m matrix`` only."""
    assert set(chosen) <= {f"{m}-{h}" for m in METHODS for h in hosts}
    return [
        pytest.param(m, h, id=f"{m}-{h}", marks=[] if f"{m}-{h}" in chosen else pytest.mark.matrix)
        for m in METHODS
        for h in hosts
    ]


@functools.cache
def pair(method, host):
    """``(original, rewritten, inputs)``; the new parameters are put back by whoever moves them."""
    torch.manual_seed(0)
    model = BY_NAME[host].make()
    inputs = BY_NAME[host].inputs(2, 7)
    return model, resfx.rewrite(model, METHODS[method], kwargs=inputs), inputs


def equal(a, b):
    """Whether two outputs are the same bit for bit, and not empty."""
    left, right = tensors_of(a), tensors_of(b)
    return len(left) == len(right) > 0 and all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def loss_of(outputs):
    """A number that depends on every output, on each with a weight of its own."""
    terms = [t for t in tensors_of(outputs) if t.is_floating_point() and t.requires_grad]
    return sum((t * torch.cos(torch.arange(t.numel(), dtype=t.dtype) + 1).view(t.shape)).sum() for t in terms)
