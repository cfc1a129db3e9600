"""Triton kernels of a widened stream and of Sinkhorn-Knopp against the formulas, run by ``test_triton.py``."""

from __future__ import annotations

import pytest
import torch
from hosts.triton_kernels import inside, installed

from benchmarks.gpu.against import agree, draw, turned
from resfx.ops.channels import formula as _channels
from resfx.ops.sinkhorn import formula as sinkhorn

pytestmark = installed


@inside
@pytest.mark.parametrize("unit", [None, 1.0])
def test_combining_with_what_the_weights_sum_to(unit, kernels):
    args = (draw(2, 3, 4, 9).float(), draw(2, 3, 4, 1).float(), unit)
    agree(_channels.combine, _channels.combine_formula, args, torch.float32)
    per_feature = torch.randn(4, 9).requires_grad_()
    out = _channels.combine(args[0], per_feature, unit)
    assert "_Combine" in type(out.grad_fn).__name__


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
@pytest.mark.parametrize("size", [3, 8])
def test_newton_steps_reach_the_limit(size, kernels):
    matrix = sinkhorn.sinkhorn((draw(3, 12, size, size) + 2 * torch.eye(size)).float(), 2, 8)
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
