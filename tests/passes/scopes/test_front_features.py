"""Streams with their features in dimension 1: where they begin and end, how memory lies, other lowerings."""

from __future__ import annotations

import pytest
import torch
from hosts.channel_first import LastNorm, both
from hosts.made import randomise
from torch import nn
from zoo.plain_conv import BasicBlock, Stem

import resfx
from resfx.methods.depth.base import Read


@pytest.mark.parametrize("method", [resfx.AttnRes(), resfx.MHC()], ids=["attnres", "mhc"])
def test_exact_as_the_host_lays_out_its_memory(method):
    model, _, x = both("post", torch.bfloat16)
    new = resfx.rewrite(model, method, args=(x,), check=False)
    assert torch.equal(new(x), model(x))
    model, _, x = both("relu", torch.float32)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    new = resfx.rewrite(model, method, args=(x,))
    seen = []
    for conv in (m for m in new.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
        conv.register_forward_pre_hook(lambda m, a: seen.append(a[0].is_contiguous(memory_format=torch.channels_last)))
    assert torch.equal(new(x), model(x))
    assert len(seen) == 4 and all(seen)


@pytest.mark.matrix
@pytest.mark.parametrize("method", [resfx.AttnRes(), resfx.DepthRead(), resfx.MHC(), resfx.FracConnections()])
@pytest.mark.parametrize("host", ["relu", "pre", "post"])
def test_lowered(method, host, tmp_path):
    model, _, x = both(host, torch.float32)
    new = resfx.rewrite(model, method, args=(x,))
    randomise(new)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(new, backend="aot_eager", fullgraph=True)(x), new(x))
    resfx.export.to_onnx(new, tmp_path / "model.onnx", args=(x,))


def test_a_stream_ends_where_a_convolution_changes_the_state():
    """What a stage reads are its own states: the shortcut behind them is a convolution, and another width."""
    torch.manual_seed(0)
    blocks = [BasicBlock(16, 16), BasicBlock(16, 16), BasicBlock(16, 24, 2), BasicBlock(24, 24), BasicBlock(24, 24)]
    model, x = Stem(*blocks, width=24).eval(), torch.randn(2, 3, 16, 16)
    new = resfx.rewrite(model, "denseformer", args=(x,))
    assert torch.equal(new(x), model(x))
    reads = {n: m.weight.numel() for n, m in new.named_modules() if isinstance(m, Read)}
    root = "resfx.denseformer.blocks"
    assert reads == {f"{root}.1.read0": 2, f"{root}.1.exit0": 3, f"{root}.4.read0": 2, f"{root}.4.exit0": 3}
    wide = resfx.rewrite(model, resfx.MHC(n=2), args=(x,))
    assert {n.removeprefix("resfx.mhc.") for n, _ in wide.named_modules() if n.endswith((".expand", ".collapse"))} == {
        "blocks.0.add0.expand", "blocks.1.add0.collapse", "blocks.3.add0.expand", "blocks.4.add0.collapse",
    }  # fmt: skip
    assert any("changes the state's basis" in s.reason for s in wide.report.skips)


def test_an_activation_behind_every_add_is_no_sum():
    """Sources do not add up to such a stream: a read of sums says so; the last read stands behind the activation."""
    model, _, x = both("relu")
    with pytest.raises(resfx.errors.NoSitesError, match="a norm or an activation follows every add"):
        resfx.rewrite(model, resfx.AttnRes(start="published"), args=(x,))
    new = resfx.rewrite(model, "denseformer", args=(x,))
    seen = []
    for name, read in new.named_modules():
        if name.endswith("exit0"):
            read.register_forward_pre_hook(lambda m, a: seen.extend(a[0][1:]))
    new(x)
    assert len(seen) == 4 and all(s.min() >= 0 for s in seen)


def test_features_are_where_the_add_has_them_though_all_sizes_agree():
    """A stem with features in front, turned before the first add: only the turning tells the two layouts apart."""
    first, last, _ = both("pre")
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    results = []
    for model in (first, last):
        new = resfx.rewrite(model, resfx.AttnRes(), args=(x,), include="first*")
        randomise(new, 0.3)
        results.append(new(x))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    assert (results[0] - first(x)).abs().max() > 1e-4


def test_a_norm_that_one_block_calls_twice_is_itself_where_the_state_is_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = LastNorm(8), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.norm(x + self.norm(self.conv(x)))

    model, x = nn.Sequential(*(Twice() for _ in range(3))), torch.randn(2, 8, 4, 5)
    new = resfx.rewrite(model, resfx.MHC(n=2), args=(x,))
    assert torch.equal(new(x), model(x))
    assert torch.equal(new[0].norm(x), model[0].norm(x))
