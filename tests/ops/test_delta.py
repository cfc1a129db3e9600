"""The forms of the delta shortcut against each other, and under every way torch differentiates and compiles."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from resfx.ops.delta.formula import delta_formula, delta_shortcut

FORMS = {
    "published": ("none", False, False),
    "published, total given": ("none", True, False),
    "erase": ("none", False, True),
    "erase, total given": ("none", True, True),
    "interpolated": ("scalar", False, True),
    "interpolated, total given": ("scalar", True, True),
    "per channel": ("channel", False, True),
}
forms = pytest.mark.parametrize("form", FORMS)


def operands(form, shape=(3, 4, 6), dtype=torch.float64, gates=None, mix=0.3):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)
    kind, with_total, add = FORMS[form]
    x, f, b, v = draw(*shape), draw(*shape), 2 * draw(*shape[:-1], 1).sigmoid(), draw(*shape[:-1], 1)
    m = {"none": None, "scalar": torch.tensor(mix).double(), "channel": mix + 0 * draw(shape[-1])}[kind]
    total = x + 0.7 * f if with_total else None
    cast = lambda t, to: None if t is None else t.to(to).requires_grad_()
    gates = gates or dtype
    return [cast(x, dtype), cast(f, dtype), cast(b, gates), cast(v, gates), cast(m, dtype), cast(total, dtype)], add


def packed(function, args, add, eps2=1e-10):
    """A function of the operands that are given, and those."""
    given = [i for i, a in enumerate(args) if a is not None]

    def call(*tensors):
        full = [None] * len(args)
        for i, t in zip(given, tensors, strict=True):
            full[i] = t
        if function is delta_formula:
            return delta_formula(*full, eps2, add)
        return function(*full, eps2=eps2, add=add)

    return call, [args[i] for i in given]


def gradients(output, leaves, seed=1):
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad(output, leaves, grad.to(output.dtype), materialize_grads=True)


@forms
def test_gradients_of_first_and_second_order(form):
    args, add = operands(form, (2, 5))
    call, given = packed(delta_shortcut, args, add, 1e-3)
    assert "_Delta" in type(call(*given).grad_fn).__name__
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


@forms
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_every_type_against_float64(form, dtype, tolerance):
    """The operands are rounded first, so that only the operator's own error is seen."""
    args, add = operands(form, (5, 33), dtype, gates=torch.float32)
    exact = [None if a is None else a.detach().double().requires_grad_() for a in args]
    fast, given = packed(delta_shortcut, args, add)
    plain, references = packed(delta_formula, exact, add)
    got, want = fast(*given), plain(*references)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    for a, b, leaf in zip(gradients(got, given), gradients(want, references), given, strict=True):
        assert a.dtype == leaf.dtype and a.shape == leaf.shape
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mix", ["interpolated", "interpolated, total given", "per channel"])
@pytest.mark.parametrize("compiled", [False, True])
def test_closed_mix_is_the_plain_add_bit_for_bit_with_its_gradients(mix, dtype, compiled):
    if compiled and mix != "interpolated":
        pytest.skip("compiled, every mix takes the code path that 'interpolated' tests")
    torch._dynamo.reset()
    (x, f, b, v, m, total), _ = operands(mix, (7, 48), dtype, gates=torch.float32, mix=0.0)
    run = torch.compile(delta_shortcut, backend="aot_eager", fullgraph=True) if compiled else delta_shortcut
    out = run(x, f, b, v, m, total)
    plain = x + f if total is None else total * 1
    assert torch.equal(out, plain)
    if total is None:
        for a, b_ in zip(gradients(out, (x, f)), gradients(plain, (x, f)), strict=True):
            assert torch.equal(a, b_)
    else:
        gx, gf, gt = gradients(out, (x, f, total))
        assert not gx.any() and not gf.any() and torch.equal(gt, gradients(plain, (total,))[0])
    gb, gv = gradients(run(x, f, b, v, m, total), (b, v))
    assert not gb.any() and not gv.any()


@forms
def test_compiled_gradients(form):
    torch._dynamo.reset()
    args, add = operands(form)
    call, given = packed(delta_shortcut, args, add)
    want, _ = packed(delta_formula, args, add)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), want(*given))
    for a, b in zip(gradients(compiled(*given), given), gradients(want(*given), given), strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_training_keeps_no_number_per_row():
    """What makes the compiled form fast: the forward pass hands on its inputs and nothing else."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compilers import nop
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    torch._dynamo.reset()
    args, _ = operands("interpolated", (16, 64), torch.float32)
    handed = {}

    def look(graph, _):
        handed["names"] = [n.name for n in graph.graph.output_node().args[0]]
        return nop(graph, _)

    backend = aot_autograd(fw_compiler=look, bw_compiler=nop, partition_fn=min_cut_rematerialization_partition)
    torch.compile(lambda *a: delta_shortcut(*a), backend=backend, fullgraph=True)(*args[:5]).sum().backward()
    assert all(n.startswith("primals") for n in handed["names"][1:]) and len(handed["names"]) == 6


def loss_of(call):
    return lambda *tensors: (call(*tensors) * torch.linspace(-1, 1, 6, dtype=torch.float64)).sum()


@pytest.mark.parametrize("form, compiled", [*((form, False) for form in FORMS), ("interpolated, total given", True)])
def test_function_transforms(form, compiled):
    torch._dynamo.reset()
    args, add = operands(form, (4, 6))
    (fast, given), (plain, _) = (packed(f, args, add) for f in (delta_shortcut, delta_formula))
    given = [t.detach() for t in given]
    tangents = tuple(torch.randn_like(t) for t in given)
    every = tuple(range(len(given)))
    transforms = {
        "grad": lambda call: torch.func.grad(loss_of(call), every)(*given),
        "jacrev": lambda call: torch.func.jacrev(call)(*given),
        "vjp": lambda call: torch.func.vjp(call, *given)[1](torch.ones_like(given[0])),
        "jvp": lambda call: torch.func.jvp(call, tuple(given), tangents),
        "rows": lambda call: torch.func.vmap(torch.func.grad(loss_of(call)), (0,) * 4 + (None,) * (len(given) - 4))(
            *given[:4], *given[4:]) if args[5] is None else None,
        "hessian": lambda call: torch.func.hessian(lambda f: loss_of(call)(given[0], f, *given[2:]))(given[1]),
    }  # fmt: skip
    for name, transform in transforms.items():
        if compiled and name in ("jacrev", "hessian"):
            continue
        run = (
            torch.compile(lambda t=transform: t(fast), backend="aot_eager") if compiled else lambda t=transform: t(fast)
        )
        torch.testing.assert_close(run(), transform(plain), msg=lambda m, name=name: f"{name}: {m}")


def test_forward_mode_without_a_transform():
    args, _ = operands("interpolated", (4, 6))
    x, *rest = (t.detach() for t in args[:5])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(delta_shortcut(dual, *rest)).tangent
    assert torch.allclose(tangent, torch.func.jvp(lambda a: delta_formula(a, *rest, None, 1e-10, True), (x,),
                                                  (torch.ones_like(x),))[1])  # fmt: skip


def test_broadcast_operands_go_through_the_formula():
    args, _ = operands("interpolated", (4, 6))
    x, f, b, v, m, _ = args
    out = delta_shortcut(x, f[:1], b[:1], v, m)
    assert torch.equal(out, delta_formula(x, f[:1], b[:1], v, m, None, 1e-10, True))
    wanted = gradients(out, (f, b, m))
    assert all(g.shape == t.shape for g, t in zip(wanted, (f, b, m), strict=True))
    for mixed in (m, None):
        leaves = (f, b) if mixed is None else (f, b, m)
        node = torch.ops.resfx.delta_shortcut(x, f[:1], b[:1], v, mixed, None, 1e-10, True)
        plain = delta_formula(x, f[:1], b[:1], v, mixed, None, 1e-10, True)
        for a, e in zip(gradients(node, leaves), gradients(plain, leaves), strict=True):
            torch.testing.assert_close(a, e)


def test_a_vanishing_branch_is_finite():
    (x, f, b, v, m, _), _ = operands("interpolated", (4, 6), torch.float32)
    with torch.no_grad():
        f[1] = 0
    out = delta_shortcut(x, f, b, v, m)
    assert torch.equal(out[1], x[1]) and all(g.isfinite().all() for g in gradients(out, (x, f, b, v, m)))
