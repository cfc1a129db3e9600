"""Hyper-Connections, mHC and Sinkhorn-Knopp: oracles that need no model."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references.wide import HyperReference, ManifoldReference
from torch import nn

import resfx
from resfx import MHC, HyperConnections
from resfx.methods.base import Place
from resfx.methods.wide.base import Readout
from resfx.methods.wide.mhc import ManifoldRead
from resfx.methods.wide.mixing import mixing_of
from resfx.ops.sinkhorn.formula import sinkhorn

WIDTH = 12


def place(depth=0, **changes):
    settings = {"width": WIDTH, "context_width": WIDTH, "kind": "mlp", "dtype": torch.float64}
    return Place(depth=depth, device=torch.device("cpu"), **{**settings, **changes})


def randomised(module, std=0.5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter))
    return module


def state(n, seed=0, dtype=torch.float64):
    return torch.randn(2, 5, n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- Sinkhorn --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_sinkhorn_is_doubly_stochastic_after_twenty_rounds(n, seed):
    # A round contracts Hilbert's metric by tanh(D / 4)^2 (Birkhoff); D is at most 3.2 for logits in [-0.8, 0.8].
    logits = 1.6 * torch.rand(6, n, n, generator=torch.Generator().manual_seed(seed)) - 0.8
    matrix = sinkhorn(logits, 20)
    assert matrix.min() > 0
    assert (matrix.sum(-1) - 1).abs().max() < 1e-6
    assert (matrix.sum(-2) - 1).abs().max() < 1e-6
    assert torch.linalg.matrix_norm(matrix.double(), 2).max() < 1 + 1e-6
    pair = matrix[0] @ matrix[1]
    assert (pair.sum(-1) - 1).abs().max() < 2e-6 and (pair.sum(-2) - 1).abs().max() < 2e-6


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 8), diagonal=st.sampled_from([0.0, 4.0]), s=st.floats(0, 3), seed=st.integers(0, 10**6))
def test_newton_steps_make_it_so_over_the_range_that_training_reaches(n, diagonal, s, seed):
    noise = torch.randn(50, n, n, generator=torch.Generator().manual_seed(seed))
    matrix = sinkhorn(diagonal * torch.eye(n) + s * noise, *MHC().rounds)
    assert matrix.min() > 0
    assert (matrix.sum(-1) - 1).abs().max() < 5e-7
    assert (matrix.sum(-2) - 1).abs().max() < 1e-6
    pair = matrix[0] @ matrix[1]
    assert (pair.sum(-1) - 1).abs().max() < 1e-6 and (pair.sum(-2) - 1).abs().max() < 2e-6


def test_the_mixes_of_a_trained_model_are_doubly_stochastic(monkeypatch):
    torch.manual_seed(0)
    model, x, y, seen = Tiny(), torch.randn(16, 5, 8), torch.randn(16, 5, 8), []
    new = resfx.rewrite(model, MHC(), args=(x,))
    optimizer = torch.optim.Adam(new.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (new(x) - y).square().mean().backward()
        optimizer.step()
    monkeypatch.setattr(
        "resfx.methods.wide.mixing.sinkhorn", lambda z, *settings: seen.append(z.detach()) or sinkhorn(z, *settings)
    )
    new(x)
    logits = torch.stack(seen)
    assert (logits - MHC().diagonal * torch.eye(4)).std() > 0.5, "training has moved them"
    matrix = sinkhorn(logits, *MHC().rounds)
    assert (matrix.sum(-1) - 1).abs().max() < 5e-7 and (matrix.sum(-2) - 1).abs().max() < 1e-6
    assert (sinkhorn(logits, 20).sum(-2) - 1).abs().max() > 1e-3, "which the rounds alone do not reach"


def test_written_out_elimination_is_the_library_s(monkeypatch):
    logits = 4 * torch.eye(5) + torch.randn(30, 5, 5, generator=torch.Generator().manual_seed(0))
    want = sinkhorn(logits.double(), 20, 8)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert (sinkhorn(logits.double(), 20, 8) - want).abs().max() < 1e-14
    assert (sinkhorn(logits, 20, 8) - want).abs().max() < 3e-6


@pytest.mark.parametrize("newton", [0, 8])
@pytest.mark.parametrize("scale", [4.0, 50.0, 1000.0])
def test_sinkhorn_survives_extreme_logits(scale, newton):
    logits = (scale * torch.randn(50, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    matrix = sinkhorn(logits, 20, newton)
    matrix.square().sum().backward()
    assert torch.isfinite(matrix).all() and torch.isfinite(logits.grad).all()
    assert (matrix.sum(-1) - 1).abs().max() < 1e-6  # rows are last; columns may take many rounds here


def test_sinkhorn_does_not_see_row_and_column_offsets():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    shifted = logits + torch.randn(4, 1, generator=generator).double() + torch.randn(1, 4, generator=generator).double()
    assert (sinkhorn(logits, 200) - sinkhorn(shifted, 200)).abs().max() < 1e-12


def test_sinkhorn_gradient():
    logits = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: sinkhorn(z, 7), (logits,))


# -- one site --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize(
    "config",
    [MHC(), MHC(n=3, start="published"), HyperConnections(), HyperConnections(n=2, norm="rms")],
)
def test_one_site_against_the_equations(config, depth):
    stream = config.build_stream([place(d) for d in range(depth + 2)])
    read, write = randomised(stream.reads[depth]), stream.writes[depth]
    X = state(config.n).requires_grad_()
    if isinstance(config, MHC) and depth == 0:
        X = X.detach()[:, :, :1].expand(2, 5, config.n, WIDTH).contiguous().requires_grad_()
    f = torch.randn(2, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    weights = {f"at.read.{k}": v for k, v in read.named_parameters()}
    if isinstance(config, HyperConnections) and config.norm == "rms":
        normed = X / torch.sqrt(X.square().mean(-1, keepdim=True) + config.eps)
        seen = torch.tanh(torch.einsum("btnd,md->btnm", normed, read.dynamic))
        a, b = read.scale
        x_want = torch.einsum("btn,btnd->btd", read.read + a * seen[..., 0], X)
        mixed = torch.einsum("btij,btid->btjd", read.mix + a * seen[..., 2:], X)
        want = mixed + torch.einsum("btj,btd->btjd", read.write + b * seen[..., 1], f)
    else:
        reference = (ManifoldReference if isinstance(config, MHC) else HyperReference)(config, weights)
        x_want, memo = reference.read(X, "at", depth == 0)
        want = reference.write(X, f, None, None, "at", memo)
    x, memo = read(X)
    got = write(X, f, x, None, memo)
    assert (x - x_want).abs().max() < 1e-13
    assert (got - want).abs().max() < 1e-13
    loss = lambda y, h: (y * torch.cos(torch.arange(y.numel()).view_as(y))).sum() + h.square().sum()
    leaves = [X, f, *read.parameters()]
    for a, b in zip(
        torch.autograd.grad(loss(got, x), leaves), torch.autograd.grad(loss(want, x_want), leaves), strict=True
    ):
        assert (a - b).abs().max() < 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 3, 4, 7])
@pytest.mark.parametrize("kind", [MHC, HyperConnections])
def test_start_is_exact_for_any_number_of_channels(kind, n, dtype):
    places = [place(d, dtype=dtype) for d in range(9)]
    stream = dataclasses.replace(kind(n=n), readout="learned").build_stream(places)
    x = torch.randn(33, WIDTH, dtype=dtype)
    X, plain = stream.expand(x), x
    for i, (read, write) in enumerate(zip(stream.reads, stream.writes, strict=True)):
        h, memo = read(X)
        assert torch.equal(h, plain), i
        f = torch.tanh(h * (i - 3))
        plain, X = plain + f, write(X, f, h, None, memo)
    assert torch.equal(stream.collapse(X), plain)


def test_equal_channels_stay_equal_under_any_mixing_with_equal_writes():
    stream = MHC().build_stream([place(d) for d in range(3)])
    read = randomised(stream.reads[1], 2.0)
    with torch.no_grad():
        read.alpha[1] = 0
        read.post.fill_(0.3)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    X, f = stream.expand(x), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    h, memo = read(X)
    out = stream.writes[1](X, f, h, None, memo)
    assert torch.equal(out, out[:, :, :1].expand_as(out))


def test_one_channel_is_the_plain_residual_add():
    stream = HyperConnections(n=1).build_stream([place(d) for d in range(2)])
    x, f = torch.randn(2, 5, WIDTH, dtype=torch.float64), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    X = stream.expand(x)
    for read, write in zip(stream.reads, stream.writes, strict=True):
        h, memo = read(X)
        assert torch.equal(h, X[..., 0, :])
        assert torch.equal(write(X, f, h, None, memo)[..., 0, :], h + f)


def test_permuting_channels_and_parameters_together_changes_nothing():
    order, n = torch.tensor([2, 0, 3, 1]), 4
    X, f = state(n), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    read = randomised(HyperConnections().build_stream([place(d) for d in range(2)]).reads[1])
    twin = HyperConnections().build_stream([place(d) for d in range(2)]).reads[1]
    write = HyperConnections().build_stream([place()]).writes[0]
    with torch.no_grad():
        twin.read.copy_(read.read[order]), twin.write.copy_(read.write[order]), twin.scale.copy_(read.scale)
        twin.mix.copy_(read.mix[order][:, order])
        twin.dynamic.copy_(torch.cat([read.dynamic[:2], read.dynamic[2:][order]]))
    (a, memo), (b, other) = read(X), twin(X[:, :, order])
    assert (a - b).abs().max() < 1e-13
    assert (write(X, f, a, None, memo)[:, :, order] - write(X[:, :, order], f, b, None, other)).abs().max() < 1e-13


def test_forty_eight_manifold_mixes_stay_bounded_where_free_ones_grow():
    X, products = state(4), {}
    for kind in (MHC, HyperConnections):
        total = torch.eye(4, dtype=torch.float64).expand(2, 5, 4, 4)
        for i in range(48):
            read = kind().build_stream([place(d) for d in range(3)]).reads[1]
            randomised(read, 0.3, seed=i)
            mix = read.coefficients(X)[2].detach()
            total = (mix if kind is MHC else mix.transpose(-1, -2)) @ total
        products[kind] = float(torch.linalg.matrix_norm(total, 2).max())
        if kind is MHC:
            assert total.min() > 0 and (total.sum(-1) - 1).abs().max() < 1e-12
            assert (total.sum(-2) - 1).abs().max() < 1e-11
    assert products[MHC] < 1 + 1e-11
    assert products[HyperConnections] > 100


def test_parameters_are_as_many_as_the_papers_count():
    count = lambda module: sum(p.numel() for p in module.parameters())
    n, d = 4, WIDTH
    places = [place(i) for i in range(3)]
    assert count(HyperConnections(dynamic=False).build_stream(places).reads[1]) == n * (n + 2)
    assert count(HyperConnections().build_stream(places).reads[1]) == d * (n + 2) + n * (n + 2) + 2
    assert count(MHC().build_stream(places).reads[1]) == n * d * (n * n + 2 * n) + n * n + 2 * n + 3
    unmixed = n * d * 2 * n + 2 * n + 2
    assert count(MHC().build_stream(places).reads[0]) == unmixed, "equal channels: nothing to mix"
    assert count(MHC().build_stream(places).reads[2]) == unmixed, "a mean sees no mixing"
    assert count(MHC(readout="learned").build_stream(places).reads[2]) > 2 * unmixed


def test_published_starts_are_the_papers():
    stream = HyperConnections(start="published").build_stream([place(d) for d in range(6)])
    for k, read in enumerate(stream.reads):
        assert read.read.tolist() == [float(j == k % 4) for j in range(4)]
        assert torch.equal(read.mix, torch.eye(4, dtype=torch.float64)) and (read.write == 1).all()
        assert (read.scale == 0.01).all() and (read.dynamic == 0).all()
    X = state(4)
    assert (stream.collapse(X) - X.sum(-2)).abs().max() < 1e-14
    config = MHC(start="published")
    read = config.build_stream([place(d) for d in range(3)]).reads[1]
    assert torch.allclose(read.alpha, torch.full((3,), 0.01, dtype=torch.float64))
    mixed = read.coefficients(X)[2]
    weights = (read.alpha[2] * (X.flatten(-2) / (X.flatten(-2).square().mean(-1, keepdim=True) + config.eps).sqrt())
               @ read.projection[8:].T).unflatten(-1, (4, 4)) + read.res  # fmt: skip
    want = weights.exp()
    for _ in range(20):  # equation 9: columns, then rows, twenty times, and nothing more
        want = want / want.sum(-2, keepdim=True)
        want = want / want.sum(-1, keepdim=True)
    assert (mixed - want).abs().max() < 1e-13 and (mixed.sum(-2) - 1).abs().max() > 1e-5
    assert isinstance(resfx.mHC(), MHC)


@pytest.mark.parametrize("readout", ["mean", "sum", "learned"])
def test_no_mixing_is_dead(readout):
    """A doubly stochastic mix of the last add changes neither the mean nor the sum: there is none. Others act."""
    config = MHC(start="published", readout=readout, sinkhorn_newton=12)
    stream = config.build_stream([place(d) for d in range(3)])
    last = randomised(ManifoldRead(config, place(2), mixes=True), 0.5)
    X, f = state(4), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    if readout == "learned":
        randomised(stream.collapse)
    x, (post, res) = last(X)
    with_mix, without = (stream.collapse(stream.writes[2](X, f, x, None, (post, m))) for m in (res, None))
    changed = float((with_mix - without).detach().abs().max())
    assert changed > 1e-3 if readout == "learned" else changed < 1e-12
    assert [read.res is None for read in stream.reads] == [True, False, readout != "learned"]


def test_older_saves_have_a_mixing_at_the_last_add():
    read = MHC().build_stream([place(d) for d in range(2)]).reads[1]
    older = randomised(ManifoldRead(MHC(), place(1), mixes=True))
    read.load_state_dict(older.state_dict())
    X = state(4)
    (x, (post, _)), (want, (old_post, _)) = read(X), older(X)
    assert (post - old_post).abs().max() < 1e-14 and (x - want).abs().max() < 1e-14


def test_readouts():
    X = state(3)
    factory = {"dtype": torch.float64}
    assert (Readout(3, "mean", factory)(X) - X.mean(-2)).abs().max() < 1e-14
    learned = Readout(3, "learned", factory)
    with torch.no_grad():
        learned.weight.copy_(torch.tensor([0.5, -0.25, 0.1]))
    want = torch.einsum("n,btnd->btd", torch.tensor([0.5, -0.25, 0.1]).double() + 1 / 3, X)
    assert (learned(X) - want).abs().max() < 1e-14


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + torch.tanh(layer(norm(x)))
        return x


@pytest.mark.parametrize("trapped", [True, False])
def test_the_start_is_not_the_symmetric_one_that_never_separates(trapped):
    torch.manual_seed(0)
    model, x, y = Tiny(), torch.randn(4, 3, 8), torch.randn(4, 3, 8)
    new = resfx.rewrite(model, MHC(), args=(x,))
    if trapped:  # equal weights, equal biases and no projection: what the method's documentation warns of
        with torch.no_grad():
            for name, parameter in new.new_parameters().items():
                parameter.fill_(-1.0986123 if name.endswith("pre") else 0.0)
                parameter.requires_grad_(not name.endswith(("projection", "alpha")))
    optimizer = torch.optim.Adam([p for p in new.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        (new(x) - y).square().mean().backward()
        optimizer.step()
    seen = []
    module = next(m for n, m in new.named_modules() if n.endswith(".collapse"))
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    new(x)
    spread = float(seen[0].std(-2).max())
    assert (spread < 1e-5) if trapped else (spread > 1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: MHC(n=1), "n must be"), (lambda: HyperConnections(n=0), "n must be"),
        (lambda: MHC(readout="sum"), "sum"), (lambda: MHC(readout="last"), "readout"),
        (lambda: MHC(n=7, mixing="permutation"), "too many"), (lambda: MHC(n=14, mixing="kronecker"), "too many"),
        (lambda: MHC(mixing="cayley"), "mixing"), (lambda: MHC(sinkhorn_iterations=0), "sinkhorn"),
        (lambda: MHC(lean=1.0), "lean"),
        (lambda: HyperConnections(norm="batch"), "norm"), (lambda: MHC(eps=0), "eps"),
    ],
)  # fmt: skip
def test_bad_settings_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        settings()


@pytest.mark.parametrize(("mixing", "n"), [("permutation", 3), ("permutation", 4), ("kronecker", 4), ("kronecker", 6)])
def test_mixtures_of_permutations_are_doubly_stochastic_and_reach_every_permutation(mixing, n):
    form = mixing_of(mixing, n, (20, 0))
    z = torch.randn(5, *form.shape, dtype=torch.float64)
    matrix = form.matrix(z, form.tables())
    assert matrix.shape == (5, n, n) and (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones(5, n, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(-2), torch.ones(5, n, dtype=torch.float64))
    torch.testing.assert_close(form.matrix(form.start(1e4), form.tables()), torch.eye(n))
    ones = [torch.eye(count) for count in form.counts]
    chosen = [1e4 * torch.cat(rows) for rows in itertools.product(*ones)]
    seen = {tuple(form.matrix(z, form.tables()).argmax(-1).tolist()) for z in chosen}
    assert all(sorted(way) == list(range(n)) for way in seen) and len(seen) == math.prod(form.counts)
