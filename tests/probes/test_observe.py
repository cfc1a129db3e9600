"""What each method's modules tell, against its definition: by hand, or by what the module itself then computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import resfx
from resfx.methods.base import Place
from resfx.methods.depth.base import DepthPlace
from resfx.methods.observe import apart, entropy

CPU = {"dtype": torch.float64, "device": torch.device("cpu")}


def place(width=8, depth=1, **facts):
    return Place(width=width, context_width=width, kind="attention", depth=depth, rank=3, heads=2, **CPU, **facts)


def depth_place(sources, outputs=1, width=8):
    return DepthPlace(
        width=width, context_width=width, kind="attention", depth=2, rank=3, **CPU,
        read=sources - 1, sources=sources, last=False, outputs=outputs,
    )  # fmt: skip


@torch.no_grad()
def shaken(module):
    """The module with every parameter moved from its start."""
    for parameter in module.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def sources(count, width=8):
    return [torch.randn(2, 5, width, dtype=torch.float64) for _ in range(count)]


def weighed(weights, rows):
    return sum(weights[..., j, None] * row for j, row in enumerate(rows))


def test_ddl_by_hand():
    site = resfx.DDL(eps=1e-12, start="published").build(place(width=2))
    x, f, c = (torch.tensor([[row]], dtype=torch.float64) for row in ([3.0, 4.0], [0.0, 2.0], [1.0, 1.0]))
    with torch.no_grad():
        site.gate.weight.zero_()
        site.gate.bias.fill_(math.log(0.25 / 0.75))  # beta = 2 sigmoid = 0.5
        site.target.weight.copy_(torch.tensor([[3.0, 4.0]]))  # v = 7
    told = {name: observed.values.item() for name, observed in site.observe(x, f, c).items()}
    assert told == pytest.approx({"beta": 0.5, "erased": 0.5 * 4, "written": 0.5 * 7, "cosine": 0.8})
    assert_close(site(x, f, c), x + torch.tensor([[[0.0, 3.5 - 2.0]]], dtype=torch.float64))


def test_ddl_says_how_much_of_it_acts():
    site = resfx.DDL().build(place())
    with torch.no_grad():
        site.mix.fill_(0.25)
    assert site.observe(*sources(2), None)["mix"].values.item() == 0.25


def test_a_wide_ddl_by_hand():
    stream = resfx.DDL(value_channels=2, eps=1e-12, start="published", embed_conv=False).build_stream([place(width=2)])
    state = torch.tensor([[[[3.0, 4.0], [0.0, 1.0]]]], dtype=torch.float64)
    f = torch.tensor([[[0.0, 2.0]]], dtype=torch.float64)
    with torch.no_grad():
        stream.writes[0].gate.weight.zero_()
        stream.writes[0].gate.bias.zero_()  # beta = 1
        stream.writes[0].target.weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))  # v = (3, 4)
    told = stream.writes[0].observe(state, f, f, torch.ones_like(f), None)
    assert told["erased"].values.item() == pytest.approx(math.hypot(4, 1))
    assert told["written"].values.item() == pytest.approx(5)
    assert told["cosine"].values.flatten().tolist() == pytest.approx([0.8, 1.0])
    assert stream.reads[0].observe(state)["apart"].values.item() == pytest.approx(apart(state).item())


def test_an_attention_read_by_hand():
    read = resfx.AttnRes().build(depth_place(2, width=2))
    rows = [torch.full((1, 1, 2), sign, dtype=torch.float64) for sign in (5.0, -7.0)]  # +1 and -1 behind the norm
    with torch.no_grad():
        read.query.fill_(0.25)  # logits of +0.5 and -0.5
        read.gain.fill_(1.0)
    told = read.observe(rows, rows[0])
    share = 1 / (1 + math.exp(-1))
    assert told["weights"].values.flatten().tolist() == pytest.approx([share, 1 - share], rel=1e-6)
    assert told["entropy"].values.item() == pytest.approx(
        -share * math.log(share) - (1 - share) * math.log(1 - share), rel=1e-6
    )


def test_entropy_of_even_and_single_weights():
    assert_close(entropy(torch.full((3, 4), 0.25)), torch.full((3,), math.log(4)))
    assert entropy(torch.tensor([0.0, 1.0])).item() == 0


@pytest.mark.parametrize(
    ("config", "outputs"),
    [
        (resfx.AttnRes(start="published"), 1), (resfx.DenseFormer(), 1), (resfx.DenseFormer(start="published"), 1),
        (resfx.ELC(start="published"), 1), (resfx.MUDD(), 4), (resfx.MUDD(start="published"), 4),
    ],
)  # fmt: skip
def test_weights_over_depth_make_the_read(config, outputs):
    """The host's stream is the newest source, so that a preserving start's base is in its weight."""
    read, rows = shaken(config.build(depth_place(3, outputs))), sources(3)
    weights = read.observe(rows, rows[-1])["weights"].values
    result = read(rows, rows[-1])
    for i, one in enumerate(result if outputs > 1 else (result,)):
        assert_close(weighed(weights[..., i, :] if outputs > 1 else weights, rows), one)


@pytest.mark.parametrize("config", [resfx.DeltaAttnRes(), resfx.DeltaAttnRes(null=True), resfx.VerticalAttention()])
def test_gated_weights_make_the_read(config):
    read, rows = shaken(config.build(depth_place(3))), sources(3)
    x, told = rows[-1], read.observe(rows, rows[-1])
    scale = [r * torch.rsqrt(r.square().mean(-1, keepdim=True) + 1e-6) for r in rows]
    total = weighed(told["weights"].values, scale if isinstance(config, resfx.VerticalAttention) else rows)
    if "null" in told:
        total = total + told["null"].values[..., None] * read.null
    assert_close(x + told["gate"].values * total, read(rows, x))


def test_weights_of_a_preserving_elc_are_its_softmax():
    read, rows = shaken(resfx.ELC().build(depth_place(3))), sources(3)
    weights = read.observe(rows, rows[0])["weights"].values
    assert_close(weights, read.logits.exp() / read.logits.exp().sum())
    x = sum(rows)
    assert_close(weighed(3 * weights, rows), read(rows, x))


@pytest.mark.parametrize("start", ["preserve", "published"])
def test_dca_tells_coefficients_averaged_over_features(start):
    read, rows = resfx.DCA(start=start).build(depth_place(3, 3)), sources(3)
    with torch.no_grad():
        read.w.normal_(std=0.05)
        read.b.add_(torch.randn(3, 3, 1, dtype=torch.float64) * 0.1)  # alike for all features: the mean is the weight
    weights = read.observe(rows, sum(rows))["weights"].values
    for i, mixture in enumerate(read(rows, sum(rows))):
        assert_close(weighed(weights[..., i, :], rows), mixture)


@pytest.mark.parametrize("shared", [False, True])
def test_heads_of_a_depth_read(shared):
    config = resfx.DepthRead(heads=2, shared=shared)
    read, rows = shaken(config.build(depth_place(3))), sources(3)
    given, project = rows, read.projection
    if shared:
        project = shaken(config.build_source(place()))
        given = [project(row) for row in rows]
    told = read.observe(given, rows[-1])
    values = [project(row)[..., 8:].unflatten(-1, (2, 4)) for row in rows]
    z = weighed(told["weights"].values, values).flatten(-2)
    assert_close(rows[-1] + read.out(z), read(given, rows[-1]))
    assert told["entropy"].values.shape == (2, 5, 2)


@pytest.mark.parametrize(
    "config", [resfx.HyperConnections(n=3), resfx.HyperConnections(n=3, dynamic=False), resfx.MHC(n=3)]
)
def test_coefficients_of_channels_make_read_and_write(config):
    stream = config.build_stream([place(depth=i) for i in range(3)])
    read, write = shaken(stream.reads[1]), stream.writes[1]
    state, f = torch.randn(2, 5, 3, 8, dtype=torch.float64), sources(1)[0]
    told = {name: observed.values for name, observed in read.observe(state).items()}
    x, memo = read(state)
    if isinstance(config, resfx.HyperConnections):
        assert_close((told["read"].unsqueeze(-1) * state).sum(-2), x)
    mixed = torch.einsum("...ij,...id->...jd", told["mixing"], state)
    assert_close(mixed + told["write"].unsqueeze(-1) * f.unsqueeze(-2), write(state, f, x, None, memo))


def test_an_add_without_a_mix_tells_the_identity():
    stream = resfx.MHC(n=3).build_stream([place(depth=i) for i in range(3)])
    told = stream.reads[0].observe(torch.randn(1, 2, 3, 8, dtype=torch.float64))
    assert torch.equal(told["mixing"].values, torch.eye(3, dtype=torch.float64))


def test_channels_apart_by_hand():
    assert apart(torch.ones(2, 3, 4)).tolist() == [0, 0]
    state = torch.tensor([[3.0, 4.0], [3.0, -4.0]])  # mean (3, 0), each 4 away from it
    assert apart(state).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize(("causal", "kind"), [(True, "sliding"), (True, "chunk"), (False, "sliding"), (False, "chunk")])
def test_weights_by_distance_make_the_mix(causal, kind):
    mixer = shaken(resfx.ShortSWA(window=3, kind=kind, rope=True, placement="branch").build(place(causal=causal)))
    h = torch.randn(2, 7, 8, dtype=torch.float64)
    observed = mixer.observe(h)["weights"]
    v = mixer.v(h).unflatten(-1, (2, 4))  # (batch, tokens, heads, features)
    mixed = torch.zeros_like(v)
    for i in range(observed.values.shape[-1]):
        distance = i + observed.first
        for t in range(7):
            if 0 <= t - distance < 7:
                mixed[:, t] += observed.values[:, t, :, i, None] * v[:, t - distance]
            else:
                assert not observed.values[:, t, :, i].any()
    assert_close(h + mixer.o(mixed.flatten(-2)), mixer(h))


@pytest.mark.parametrize(("causal", "first"), [(True, 0), (False, -1)])
def test_taps_of_a_convolution_by_distance(causal, first):
    conv = resfx.ShortConv(kernel=3, start="published").build(place(width=2, causal=causal))
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[0.0, 3.0, 1.0], [0.0, 4.0, -1.0]]))  # oldest first
    told = conv.observe(torch.zeros(1, 1, 2))["taps"]
    assert told.first == first
    assert told.values.tolist() == pytest.approx([1.0, math.sqrt(12.5), 0.0])
