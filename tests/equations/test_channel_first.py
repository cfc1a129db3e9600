"""Streams with their features in dimension 1: each method is what it is on the same model with its features last."""

from __future__ import annotations

import pytest
import torch
from hosts.channel_first import HOSTS, both
from hosts.depth import METHODS as DEPTH
from hosts.made import randomise
from hosts.wide import METHODS as WIDE

import resfx

NO_ATTENTION = ("dca", "dca-1", "mudd", "mudd-prepost")
METHODS = {
    **{name: m for name, m in DEPTH.items() if name not in NO_ATTENTION}, **WIDE,
    "lambdas": resfx.Lambdas(backout=True), "attnres-normalized": resfx.AttnRes(normalized=True),
    "frac": resfx.FracConnections(), "permutation": resfx.MHC(mixing="permutation", n=3),
    "values": resfx.DDL(value_channels=4, embed_conv=False), "published": resfx.AttnRes(start="published"),
    "site": resfx.DDL(), "laurel": resfx.LAuReL(rank=2), "layer_scale": resfx.LayerScale(),
}  # fmt: skip
DEFAULT = [
    ("attnres", "pre"), ("delta", "post"), ("elc-normalized", "tokens"), ("mhc", "relu"), ("values", "pre"),
]  # fmt: skip
# A norm that turns its input to normalise it gives Deep Delta Learning its context where the host is turned too.
OTHER_CONTEXT = [(m, "post") for m in ("site", "values", "erase")]
REST = [(m, h) for m in METHODS for h in HOSTS if (m, h) not in DEFAULT + OTHER_CONTEXT]


def _refused(method: str, host: str) -> str:
    config = METHODS[method]
    if getattr(config, "over_tokens", False) and host != "tokens":
        return "a convolution over tokens"
    if config.start == "published" and host in ("relu", "post"):
        return "a norm or an activation follows every add"
    return ""


@pytest.mark.parametrize(
    ("method", "host"),
    [pytest.param(*c, id="-".join(c)) for c in DEFAULT]
    + [pytest.param(*c, id="-".join(c), marks=pytest.mark.matrix) for c in REST],
)
def test_as_with_the_features_last(method, host):
    config = METHODS[method]
    first, last, x = both(host)
    if reason := _refused(method, host):
        with pytest.raises(resfx.errors.NoSitesError, match=reason):
            resfx.rewrite(first, config, args=(x,))
        return
    torch.manual_seed(0)
    new = resfx.rewrite(first, config, args=(x,))
    torch.manual_seed(0)
    turned = resfx.rewrite(last, config, args=(x,), check=False)
    assert {s.axis for s in new.report.sites} == {1} and {s.axis for s in turned.report.sites} == {-1}
    if config.start == "preserve":
        assert torch.equal(new(x), first(x))
    for model in (new, turned):
        randomise(model, 0.3)
    mine, theirs = new.new_parameters(), turned.new_parameters()
    assert {n: p.shape for n, p in mine.items()} == {n: p.shape for n, p in theirs.items()}
    assert all(torch.equal(p, theirs[n]) for n, p in mine.items()), "both have the same parameters"
    got, want = new(x), turned(x)
    assert (got - first(x)).abs().max() > 1e-4, "the rewrite must act"
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    pairs = list(zip(new.named_parameters(), turned.parameters(), strict=True))
    weight = torch.cos(torch.arange(got.numel(), dtype=got.dtype)).view_as(got)
    a = torch.autograd.grad((got * weight).sum(), [p for (_, p), _ in pairs], allow_unused=True)
    b = torch.autograd.grad((want * weight).sum(), [q for _, q in pairs], allow_unused=True)
    for ((name, _), _), left, right in zip(pairs, a, b, strict=True):
        assert left is not None and right is not None, name
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
