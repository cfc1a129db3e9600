"""How an operator finds its form: registered, with kernels where those apply, and as its formula everywhere else.

The kernels themselves are in ``test_triton*.py``; here stand-ins count how often they are called.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from resfx.ops import register
from resfx.ops.attention_read import formula as read
from resfx.ops.channels import combine, mix
from resfx.ops.channels import delta as channel_delta
from resfx.ops.delta import formula as delta
from resfx.ops.short_convolution import formula as convolution
from resfx.ops.sinkhorn import formula as sinkhorn
from resfx.ops.weighted_sum import formula as sums
from resfx.ops.window import formula as window

# Right, but slow: torch has no rule for a batch of these.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop.*unfold_backward:UserWarning")


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=draw.generator).requires_grad_()


draw.generator = torch.Generator()

CASES = {
    "delta_shortcut": (delta._operator, delta.delta_formula, [
        lambda: (draw(2, 3, 5), draw(2, 3, 5), draw(2, 3, 1), draw(2, 3, 1), draw(), None, 1e-3, True),
        lambda: (draw(2, 3, 5), draw(2, 3, 5), draw(2, 3, 1), draw(2, 3, 1), None, draw(2, 3, 5), 1e-3, True),
    ]),
    "weighted_sum": (sums._operator, sums.weighted_sum_formula, [
        lambda: ([draw(2, 3, 5), draw(2, 3, 5)], draw(2), draw(2, 3, 5)),
        lambda: ([draw(2, 3, 5), draw(2, 3, 5)], draw(2, 3, 2), None),
    ]),
    "attention_read": (read._operator, read.attention_read_formula, [
        lambda: ([draw(2, 3, 5), draw(2, 3, 5)], draw(5), draw(2, 3, 5), None, 1e-6, True),
        lambda: ([draw(2, 3, 5), draw(2, 3, 5)], draw(5), None, draw(), 1e-6, False),
    ]),
    "windowed_attention": (window._operator, window.windowed_attention_formula, [
        lambda: (draw(1, 2, 4, 3), draw(1, 1, 4, 3), draw(1, 1, 4, 3), None, 2, True, False, 0.5),
        lambda: (draw(1, 2, 4, 3), draw(1, 1, 4, 3), draw(1, 1, 4, 3), torch.arange(4)[None] > 0, 3, False, True, 0.5),
    ]),
    "short_convolution": (convolution._operator, convolution.short_convolution_formula, [
        lambda: (draw(2, 4, 3), draw(3, 3), draw(3), draw(2, 4, 3), True, 2, 4),
        lambda: (draw(1, 5, 3), draw(3, 3), None, None, False, 0, 3),
    ]),
    "wide_delta": (channel_delta.delta_write, channel_delta.delta_write_formula, [
        lambda: (draw(2, 2, 3), draw(2, 3), draw(2, 1), draw(2, 2), draw(), 1e-3, True, True),
        lambda: (draw(2, 2, 3), draw(2, 3), draw(2, 1), draw(2, 2), draw(3), 1e-3, False, False),
    ]),
    "wide_mix": (mix.mix, mix.mix_formula, [
        lambda: (draw(2, 2, 3), draw(2, 3), draw(2, 2), draw(2, 2, 2), False),
        lambda: (draw(2, 2, 3), draw(2, 3), draw(2), None, True),
    ]),
    "wide_combine": (combine._operator, combine.combine_beyond, [
        lambda: (draw(2, 2, 3), draw(2, 2, 1), draw(2, 1)),
        lambda: (draw(2, 2, 3), draw(2, 1), None),
    ]),
}  # fmt: skip
KERNELS = {  # module -> operator, where it does not have the operator's name
    "delta.triton": "delta_shortcut", "window.triton": "windowed_attention", "channels.triton_mix": "wide_mix",
    "channels.triton_delta": "wide_delta", "channels.triton_combine": "wide_combine",
}  # fmt: skip
LAYOUT = {"windowed_attention": window._by_time}
VARIANTS = [(name, i) for name, (_, _, cases) in CASES.items() for i in range(len(cases))]
every = pytest.mark.parametrize("name, variant", VARIANTS)


def case(name, variant):
    """``(public, formula, arguments, a way to call either with the floating-point arguments alone)``."""
    draw.generator.manual_seed(0)
    public, formula, cases = CASES[name]
    args = cases[variant]()
    leaves, spec = pytree.tree_flatten(args)
    at = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.is_floating_point()]

    def bind(function):
        def call(*tensors):
            full = list(leaves)
            for i, tensor in zip(at, tensors, strict=True):
                full[i] = tensor
            return function(*pytree.tree_unflatten(full, spec))

        return call

    return public, formula, args, bind, tuple(leaves[i].detach() for i in at)


@pytest.fixture
def kernels(monkeypatch):
    """Every operator finds kernels: stand-ins that count their calls."""
    called = []

    def stand_in(module):
        name = KERNELS.get(module, module.removesuffix(".triton"))
        formula = CASES[name][1]
        return SimpleNamespace(
            supported=lambda *a: True,
            forward=lambda *a: called.append("forward") or LAYOUT.get(name, torch.Tensor.contiguous)(formula(*a)),
            gradients=lambda grad, *a: called.append("gradients") or register._pull_back(formula, grad, a),
        )

    monkeypatch.setattr(register, "_kernel_module", stand_in)
    monkeypatch.setattr(register, "KERNEL_DEVICES", {"cpu"})
    return called


@every
def test_eager_calls_the_kernels_forward_and_backward(name, variant, kernels):
    public, formula, _, bind, tensors = case(name, variant)
    given = [t.requires_grad_() for t in tensors]
    out = bind(public)(*given)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, given, grad)
    assert kernels == ["forward", "gradients"]
    want = bind(formula)(*given)
    torch.testing.assert_close(out, want)
    for a, e in zip(found, torch.autograd.grad(want, given, grad), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.every(2)
@every
def test_gradients_of_gradients_take_the_formula(name, variant, kernels):
    public, _, _, bind, tensors = case(name, variant)
    given = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(bind(public), given)
    assert "gradients" in kernels
    kernels.clear()
    assert torch.autograd.gradgradcheck(bind(public), given)
    assert "forward" in kernels


@every
def test_function_transforms_never_see_a_kernel(name, variant, kernels):
    public, formula, _, bind, tensors = case(name, variant)
    every = tuple(range(len(tensors)))
    tangents = tuple(torch.randn_like(t) for t in tensors)
    weigh = torch.randn_like(bind(formula)(*tensors))
    loss = lambda f: lambda *t: (f(*t) * weigh).sum().sin()
    rows = tuple(torch.stack([t, t.flip(-1) if t.ndim else t]) for t in tensors)
    transforms = {
        "grad": lambda f: torch.func.grad(loss(f), every)(*tensors),
        "vmap": lambda f: torch.func.vmap(f)(*rows),
        "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(loss(f), every))(*rows),
        "vjp": lambda f: torch.func.vjp(f, *tensors)[1](weigh),
        "jvp": lambda f: torch.func.jvp(f, tensors, tangents),
        "jacrev": lambda f: torch.func.jacrev(f, every)(*tensors),
        "jacfwd": lambda f: torch.func.jacfwd(f, every)(*tensors),
        "hessian": lambda f: torch.func.hessian(loss(f), every)(*tensors),
    }
    for transform in transforms.values():
        want = pytree.tree_leaves(transform(bind(formula)))
        kernels.clear()
        for a, e in zip(pytree.tree_leaves(transform(bind(public))), want, strict=True):
            torch.testing.assert_close(a, e)
        assert not kernels


@every
def test_forward_mode_without_a_transform(name, variant, kernels):
    public, formula, _, bind, tensors = case(name, variant)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(tensors, tangents, strict=True)]
        got = forward_ad.unpack_dual(bind(public)(*duals)).tangent
    step = 1e-6
    up, down = (bind(formula)(*(t + s * v for t, v in zip(tensors, tangents, strict=True))) for s in (step, -step))
    torch.testing.assert_close(got, (up - down) / (2 * step), rtol=1e-6, atol=1e-7)
    assert not kernels


@every
def test_batched_backward_takes_the_formula(name, variant, kernels):
    public, formula, _, bind, tensors = case(name, variant)
    given = [t.requires_grad_() for t in tensors]
    out, want = bind(public)(*given), bind(formula)(*given)
    grads = torch.randn(3, *out.shape, dtype=out.dtype)
    for a, e in zip(
        torch.autograd.grad(out, given, grads, is_grads_batched=True),
        torch.autograd.grad(want, given, grads, is_grads_batched=True), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, e)
    assert kernels == ["forward"]


@pytest.mark.every(3)
@every
def test_compiled_and_exported_stay_open(name, variant, kernels):
    public, formula, _, bind, tensors = case(name, variant)
    torch._dynamo.reset()
    out = torch.compile(bind(public), backend="aot_eager", fullgraph=True)(*tensors)
    torch.testing.assert_close(out, bind(formula)(*tensors))

    class Model(torch.nn.Module):
        def forward(self, *tensors):
            return bind(public)(*tensors)

    for strict in (True, False) if variant else (False,):
        nodes = torch.export.export(Model(), tensors, strict=strict).graph.nodes
        assert not [n for n in nodes if "resfx" in str(n.target)]
    assert not kernels


@every
def test_the_registered_operator(name, variant):
    _, formula, args, bind, tensors = case(name, variant)
    operator = getattr(torch.ops.resfx, name).default
    torch.library.opcheck(operator, args)
    tangents = tuple(torch.ones_like(t) for t in tensors)
    with pytest.raises(RuntimeError, match="forward mode"):
        torch.func.jvp(bind(operator), tensors, tangents)
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda *t: bind(operator)(*t).sum())(*tensors)
    rows = tuple(torch.stack([t, 2 * t]) for t in tensors)
    torch.testing.assert_close(torch.func.vmap(bind(operator))(*rows), torch.func.vmap(bind(formula))(*rows))


def test_kernels_are_for_plain_tensors_on_one_device(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.randn(2, 3)
    found = SimpleNamespace(supported=lambda *args: True)
    monkeypatch.setattr(register, "_kernel_module", lambda name: found)
    assert register.kernels_for("any", ([x], None)) is None
    monkeypatch.setattr(register, "KERNEL_DEVICES", {"cpu"})
    assert register.kernels_for("any", ([x], None)) is found
    assert register.kernels_for("any", ([x], torch.empty(3, device="meta"))) is None
    with FakeTensorMode() as mode:
        assert register.kernels_for("any", ([mode.from_tensor(x)],)) is None
    monkeypatch.setattr(found, "supported", lambda *args: False)
    assert register.kernels_for("any", ([x],)) is None


@pytest.mark.parametrize("newton", [0, 2])
def test_sinkhorn_finds_its_form_as_the_others_do(newton, monkeypatch):
    """It saves its result, not its operands, where that is less: a form of its own around the kernels."""
    called, formula = [], lambda z: sinkhorn.sinkhorn_formula(z, 30, newton)
    stand_in = SimpleNamespace(
        supported=lambda *args: True,
        forward=lambda *args: called.append("forward") or sinkhorn.sinkhorn_formula(*args),
        gradients=lambda grad, saved, *rest: called.append(saved) or (grad * 2, None, None),
    )
    monkeypatch.setattr(register, "_kernel_module", lambda module: {"sinkhorn.triton": stand_in}[module])
    monkeypatch.setattr(register, "KERNEL_DEVICES", {"cpu"})
    draw.generator.manual_seed(0)
    logits, public, grad = draw(2, 3, 3), lambda z: sinkhorn.sinkhorn(z, 30, newton), torch.randn(2, 3, 3).double()

    out = public(logits)
    (found,) = torch.autograd.grad(out, logits, grad, retain_graph=True)
    assert torch.equal(out, formula(logits)) and torch.equal(found, 2 * grad)
    assert called[0] == "forward" and torch.equal(called[1], out if newton else logits) and len(called) == 2
    called.clear()
    want = torch.autograd.grad(formula(logits), logits, grad)[0]
    torch.testing.assert_close(torch.autograd.grad(out, logits, grad, create_graph=True)[0], want)
    batch = torch.autograd.grad(out, logits, torch.stack([grad, -grad]), is_grads_batched=True)[0]
    torch.testing.assert_close(batch, torch.stack([want, -want]))

    for of in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian, torch.func.vmap):
        torch.testing.assert_close(of(public)(logits.detach()), of(formula)(logits.detach()))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(public(forward_ad.make_dual(logits.detach(), grad))).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(formula, (logits.detach(),), (grad,))[1])
    torch._dynamo.reset()
    compiled = torch.compile(public, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(logits), logits, grad)[0], want)

    class Model(torch.nn.Module):
        def forward(self, z):
            return public(z)

    for context, nodes in ((contextlib.nullcontext(), 0), (register.opaque_operators(), 1)):
        with context:
            program = torch.export.export(Model(), (logits.detach(),), strict=False)
        assert sum("resfx" in str(n.target) for n in program.graph.nodes) == nodes
    assert not called
