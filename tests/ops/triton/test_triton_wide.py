"""Triton kernels of a widened stream and of Sinkhorn-Knopp against the formulas, run by ``test_triton.py``."""

from __future__ import annotations

import pytest
import torch
from hosts.triton_kernels import agree, draw, dtypes, inside, installed, turned

from resfx.ops.channels import combine as _combine
from resfx.ops.channels import formula as _channels
from resfx.ops.sinkhorn import formula as sinkhorn

pytestmark = installed


@inside
@dtypes
@pytest.mark.parametrize("channels, width", [(1, 20), (3, 33)])
@pytest.mark.parametrize("mix", ["none", "scalar", "channel"])
@pytest.mark.parametrize("add, erase", [(True, True), (False, True), (True, False)])
def test_wide_delta(channels, width, mix, add, erase, dtype, kernels):
    state, f = draw(2, 3, 1, width, dtype=dtype).expand(2, 3, channels, width), turned(draw(2, 3, width, dtype=dtype))
    if add:
        state = turned(draw(2, 3, channels, width, dtype=dtype))
    m = {"none": None, "scalar": draw(dtype=dtype), "channel": draw(width)}[mix]
    m = None if m is None else m.to(dtype)
    args = (state, f, draw(2, 3, 1).float(), turned(draw(2, 3, channels)).float(), m, 1e-4, add, erase)
    agree(_channels.delta_write, _channels.delta_write_formula, args, dtype)


def channels_of(count, width, dtype, spread):
    """A state: channels of their own, the other way round in memory, or one channel as a view."""
    if spread:
        return draw(2, 3, 1, width, dtype=dtype).expand(2, 3, count, width)
    return turned(draw(2, 3, count, width, dtype=dtype))


@inside
@dtypes
@pytest.mark.parametrize("channels, width, spread", [(2, 20, False), (3, 33, False), (4, 300, True)])
@pytest.mark.parametrize("matrix", ["none", "static", "unit, static", "unit"])
def test_wide_mix(channels, width, spread, matrix, dtype, kernels):
    state, f = channels_of(channels, width, dtype, spread), turned(draw(2, 3, width, dtype=dtype))
    static = "static" in matrix
    write = draw(channels, dtype=dtype) if static else turned(draw(2, 3, channels)).float()
    m = draw(channels, channels, dtype=dtype).T if static else draw(2, 3, channels, channels).float().transpose(-1, -2)
    args = (state, f, write, None if matrix == "none" else m, "unit" in matrix)
    agree(_channels.mix, _channels.mix_formula, args, dtype)


@inside
@dtypes
@pytest.mark.parametrize("channels, width, spread", [(2, 20, False), (3, 33, False), (4, 65, True)])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_wide_combine(channels, width, spread, static, unit, dtype, kernels):
    state = channels_of(channels, width, dtype, spread)
    weights = draw(channels, 1).to(dtype) if static else turned(draw(2, 3, channels, 1)).float()
    excess = (draw(1) if static else draw(2, 3, 1)).float() if unit else None
    args = (state, weights, excess)
    agree(_combine._operator, _combine.combine_beyond, args, dtype)


@inside
@pytest.mark.parametrize("unit", [None, 1.0])
def test_combining_with_what_the_weights_sum_to(unit, kernels):
    args = (draw(2, 3, 4, 9).float(), draw(2, 3, 4, 1).float(), unit)
    agree(_channels.combine, _channels.combine_formula, args, torch.float32)
    per_feature = torch.randn(4, 9).requires_grad_()
    out = _channels.combine(args[0], per_feature, unit)
    assert "_Combine" in type(out.grad_fn).__name__


@inside
@dtypes
def test_equal_channels_stay_equal_bit_for_bit(dtype, kernels):
    x, f = draw(3, 9, dtype=dtype), torch.zeros(3, 9, dtype=dtype)
    state = x.unsqueeze(-2).expand(3, 5, 9)
    weights, matrix = torch.rand(3, 5, 1).softmax(-2), torch.rand(3, 5, 5).softmax(-1)
    assert torch.equal(_channels.combine(state, weights, _channels.total(weights.unbind(-2))), x)
    assert torch.equal(_channels.mix(state, f, torch.rand(3, 5), matrix, True), state)


@pytest.fixture
def sinkhorn_calls(monkeypatch, kernels):
    """The kernels of Sinkhorn-Knopp that are called, in order."""
    from resfx.ops.sinkhorn import triton as _sinkhorn_triton

    called = []
    for name in ("forward", "gradients"):
        run = getattr(_sinkhorn_triton, name)
        counted = lambda *args, name=name, run=run: called.append(name) or run(*args)
        monkeypatch.setattr(_sinkhorn_triton, name, counted)
    return called


@inside
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("iterations, newton", [(0, 0), (4, 0), (2, 8)])
def test_sinkhorn(iterations, newton, size, sinkhorn_calls):
    """Of the rounds, or of the limit, which many rounds reach as well."""
    logits = (turned(draw(3, 12, size, size)) + 2 * torch.eye(size)).float()
    want = lambda z, *_: sinkhorn.sinkhorn_formula(z, 300 if newton else iterations, 0)
    args = (logits, iterations, newton)
    agree(sinkhorn.sinkhorn, want, args, torch.float32, "_SinkhornBackward")
    assert sinkhorn_calls == ["forward", "gradients"]
    if newton:
        matrix = sinkhorn.sinkhorn(*args)
        assert (matrix.sum(-1) - 1).abs().max() < 5e-7 and (matrix.sum(-2) - 1).abs().max() < 1e-6


@inside
@pytest.mark.parametrize("scale", [50.0, 1000.0, "hardly touching"])
@pytest.mark.parametrize("size, newton", [(4, 0), (4, 8), (3, 20)])
def test_sinkhorn_of_extreme_logits(size, newton, scale, sinkhorn_calls):
    logits = draw(30, size, size)
    if scale == "hardly touching":
        logits = torch.where((torch.arange(size) > 0)[:, None] == (torch.arange(size) > 0), logits, -200.0)
        logits[:20, 0, -1] = -torch.inf
    else:
        logits = scale * logits
    agree(sinkhorn.sinkhorn, sinkhorn.sinkhorn, (logits.float(), 20, newton), torch.float32, "_SinkhornBackward")
    matrix = sinkhorn.sinkhorn(logits.float(), 20, newton)
    assert matrix.min() > 0 and (matrix.sum(-1) - 1).abs().max() < 5e-7
    assert sinkhorn_calls == ["forward", "gradients", "forward"]


@inside
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("newton", [0, 2])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_sinkhorn_keeps_what_is_no_number_to_its_matrix(wrong, newton, sinkhorn_calls):
    logits = draw(3, 4, 4).float()
    logits[1, 2, 0] = wrong
    for iterations in (0, 3):
        matrix = sinkhorn.sinkhorn(logits.requires_grad_(), iterations, newton)
        want = sinkhorn.sinkhorn_formula(logits.detach(), iterations, newton)
        assert want[1].isnan().any() and torch.equal(matrix.isnan(), want.isnan())
        lost = torch.autograd.grad(matrix.square().sum(), logits)[0].isnan()
        assert lost[1].any() and not lost[0].any() and not lost[2].any()


@inside
@pytest.mark.parametrize("newton", [0, 2])
def test_sinkhorn_of_many_matrices_wherever_they_lie(newton, monkeypatch):
    from resfx.ops.sinkhorn import triton as kernels

    logits, grad = draw(70, 3, 3).float(), draw(70, 3, 3).float()
    saved = kernels.forward(logits, 2, newton) if newton else logits
    want = kernels.gradients(grad, saved, 2, newton)[0]
    monkeypatch.setattr(kernels, "PROGRAMS", 2)  # for three blocks
    assert torch.equal(kernels.gradients(turned(grad), turned(saved), 2, newton)[0], want)
    one = torch.ones(()).expand(70, 3, 3)
    assert torch.equal(kernels.gradients(one, saved, 2, newton)[0], kernels.gradients(one + 0, saved, 2, newton)[0])
    spread = logits[:1].expand(70, 3, 3)
    assert torch.equal(kernels.forward(spread, 2, newton), kernels.forward(spread + 0, 2, newton))


@inside
def test_sinkhorn_leaves_to_torch_what_is_not_for_kernels(sinkhorn_calls):
    for logits in (draw(2, 9, 9).float(), draw(2, 3, 3), draw(0, 3, 3).float()):
        given = logits.requires_grad_()
        (grad,) = torch.autograd.grad(sinkhorn.sinkhorn(given, 3, 2).square().sum(), given)
        assert grad.dtype == logits.dtype and grad.shape == logits.shape
    given = draw(2, 3, 3).float().requires_grad_()
    assert not sinkhorn_calls
    (first,) = torch.autograd.grad(sinkhorn.sinkhorn(given, 20, 8).square().sum(), given, create_graph=True)
    assert sinkhorn_calls == ["forward"], "a gradient to differentiate again is that of the plain form"
    second = torch.autograd.grad(first.square().sum(), given)[0]
    wide = given.detach().double().requires_grad_()
    (first,) = torch.autograd.grad(sinkhorn.sinkhorn(wide, 20, 8).square().sum(), wide, create_graph=True)
    want = torch.autograd.grad(first.square().sum(), wide)[0]
    torch.testing.assert_close(second.double(), want, rtol=1e-4, atol=1e-5)
