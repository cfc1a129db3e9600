"""Operators on wide states: closed-form gradients against autograd of the formula, and what they keep."""

from __future__ import annotations

import pytest
import torch
from hosts.wide import Mlp
from torch import nn

import resfx
from resfx import DDL, MHC, HyperConnections
from resfx.ops.channels import formula as channels
from resfx.ops.sinkhorn.formula import sinkhorn, sinkhorn_formula

N, WIDTH = 3, 5


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def cases(dtype=torch.float64):
    """Name to ``(operator, formula, tensors)``."""
    state, f = draw(2, 4, N, WIDTH, dtype=dtype), draw(2, 4, WIDTH, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    per_token, per_feature, static = draw(2, 4, N, 1, dtype=wide), draw(N, WIDTH, dtype=wide), draw(N, 1, dtype=wide)
    write, matrix = draw(2, 4, N, dtype=wide), draw(2, 4, N, N, dtype=wide)
    beta, mix = draw(2, 4, 1, dtype=wide), draw(WIDTH, dtype=dtype)
    found = {}
    for name, weights, unit in (
        ("per token", per_token, 1.0), ("per feature", per_feature, 1.0), ("static", static, None),
    ):  # fmt: skip
        arguments = lambda s, w, u=unit: (s, w, u)
        found[f"combine, {name}"] = (channels.combine, channels.combine_formula, arguments, (state, weights))
    for name, w, m in (("per token", write, matrix), ("static", draw(N, dtype=wide), draw(N, N, dtype=wide))):
        arguments = lambda s, f, w, m: (s, f, w, m, False)
        found[f"mix, {name}"] = (channels.mix, channels.mix_formula, arguments, (state, f, w, m))
    found["mix, none"] = (channels.mix, channels.mix_formula, lambda s, f, w: (s, f, w, None, True), (state, f, write))
    for add, erase, mixes in ((True, True, mix), (True, False, draw(1, dtype=dtype).sum()), (False, True, None)):
        arguments = lambda s, f, b, v, m=None, add=add, erase=erase: (s, f, b, v, m, 1e-3, add, erase)
        tensors = (state, f, beta, write, *(() if mixes is None else (mixes.detach().requires_grad_(),)))
        found[f"delta, {add}, {erase}"] = (channels.delta_write, channels.delta_write_formula, arguments, tensors)
    for centre in (True, False):
        found[f"deviation, {centre}"] = (
            channels.inverse_deviation, channels.deviation_formula, lambda x, c=centre: (x, 1e-3, c), (state,)
        )  # fmt: skip
    found["spread"] = (channels.spread, channels.spread_formula, lambda x: (x, N), (f,))
    return found


NAMES = list(cases())


@pytest.mark.parametrize("name", NAMES)
def test_closed_forms_are_the_derivatives_of_the_formulas_and_so_are_theirs(name):
    operator, formula, arguments, tensors = cases()[name]
    call = lambda *given: operator(*arguments(*given))
    assert torch.equal(call(*tensors), formula(*arguments(*tensors)))
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("name", NAMES)
def test_half_types_round_once(name):
    operator, formula, arguments, tensors = cases(torch.bfloat16)[name]
    doubled = [t.detach().double().requires_grad_() for t in tensors]
    got, want = operator(*arguments(*tensors)), formula(*arguments(*doubled))
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(3)).bfloat16().to(got.dtype)
    a = torch.autograd.grad(got, tensors, grad)
    b = torch.autograd.grad(want, doubled, grad.double())
    for x, y, like in zip((got, *a), (want, *b), (got, *tensors), strict=True):
        assert x.dtype == like.dtype
        # One rounding of the result; float32 inside.
        assert (x.double() - y).abs().max() <= (torch.finfo(x.dtype).eps / 2 + 3e-6) * y.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_transforms_see_through(name):
    operator, formula, arguments, tensors = cases()[name]
    call = lambda form: lambda *given: form(*arguments(*given)).square().sum()
    for of in (torch.func.grad, torch.func.jacfwd):
        got = of(call(operator), tuple(range(len(tensors))))(*tensors)
        want = torch.autograd.grad(call(formula)(*tensors), tensors)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("iterations", "newton"), [(7, 0), (20, 8)])
def test_sinkhorn_keeps_one_matrix_and_has_the_gradient_of_its_rounds(iterations, newton):
    logits = (draw(4, 3, 3) + 2 * torch.eye(3)).detach().requires_grad_()
    call = lambda z: sinkhorn(z, iterations, newton)
    rounds = sinkhorn_formula(logits, 7 if not newton else 500, 0)
    assert (call(logits) - rounds).abs().max() < 1e-14
    grad = draw(4, 3, 3, seed=1).detach()
    a, b = (torch.autograd.grad(y, logits, grad)[0] for y in (call(logits), rounds))
    assert (a - b).abs().max() < 1e-13
    assert torch.autograd.gradcheck(call, (logits,)) and torch.autograd.gradgradcheck(call, (logits,))
    got = torch.func.jacrev(lambda z: call(z).square().sum())(logits)
    assert (got - torch.autograd.grad(call(logits).square().sum(), logits)[0]).abs().max() < 1e-12
    assert bytes_kept(lambda: call(logits), ()) == 8 * logits.numel()


def bytes_kept(call, parameters):
    """Bytes that autograd keeps for the backward pass, each storage once, parameters not counted."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    held = []  # as long as they are held, no other storage gets their address
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        output = call()
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    del output
    return sum(size for address, size in found.items() if address not in known)


@pytest.mark.every(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        HyperConnections(), HyperConnections(dynamic=False), HyperConnections(n=2, norm="rms"), MHC(), MHC(n=2),
        MHC(sinkhorn_newton=0), DDL(value_channels=4), DDL(value_channels=4, embed_conv=False, write_only=True),
        DDL(value_channels=4, preserve="erase"), DDL(value_channels=2, compress="token", share_compressor="sublayer"),
    ],
    ids=lambda value: getattr(value, "name", None),
)  # fmt: skip
def test_a_site_keeps_the_state_once_and_the_branch_output(config, dtype):
    """Beyond what the plain model keeps: ``n d + d`` numbers per token, a few hundred small ones that do not grow with
    the width, and weights that do not grow with the tokens. The branch's own input replaces the plain model's."""
    width, tokens, n = 32, 96, getattr(config, "value_channels", 0) or getattr(config, "n", 0)
    x = torch.randn(1, tokens, width, dtype=dtype)
    extra = []
    for depth in (3, 5):
        torch.manual_seed(0)
        model = nn.Sequential(*[Mlp(False) for _ in range(depth)]).to(dtype)
        new = resfx.rewrite(model, config, args=(x,), check=False)
        new_bytes, plain = (bytes_kept(lambda m=m: m(x), m.parameters()) for m in (new, model))
        extra.append(new_bytes - plain)
    per_token = (extra[1] - extra[0]) / 2 / tokens
    small = 4 * (8 * n + 5 * n * n + 8)  # coefficients in float32
    weights = 4 * 8 * n * width / tokens  # products of kernels and reads, of all taps
    least = (n + 1) * width * dtype.itemsize
    assert least <= per_token <= least + small + weights
