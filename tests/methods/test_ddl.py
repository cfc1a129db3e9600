"""Deep Delta Learning against an independent float64 rendering of the paper, and its oracles."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import resfx
from resfx import DDL
from resfx.methods.base import Place
from resfx.ops.delta.formula import delta_shortcut

PLACE = Place(width=12, context_width=12, kind="mlp", depth=0, dtype=torch.float64, device=torch.device("cpu"))

VARIANTS = {
    "paper": DDL(start="published"),
    "repository": DDL.repository(start="published"),
    "sublayer target": DDL(start="published", target="sublayer", target_sigmoid=True, target_scale=2.0),
    "constant target": DDL(start="published", target="constant", target_constant=2.0),
    "two-layer gate": DDL(start="published", gate_hidden=8, beta_init=0.5),
    "fused eps": DDL(start="published", eps_rule="mean", eps=1e-2),
    "eps": DDL(start="published", eps=1e-1),
}


def paper(config: DDL, module, x, f, c):
    """Section 2.1 of the paper and the authors' code, written from the equations, one step at a time."""
    width = x.shape[-1]
    weights = dict(module.named_parameters())
    eps = config.eps**2 * (width if config.eps_rule == "mean" else 1)
    norm = torch.sqrt(torch.einsum("...i,...i->...", f, f) + eps).unsqueeze(-1)
    k = f / norm
    if config.gate_hidden:
        hidden = torch.tanh(torch.einsum("...i,hi->...h", c, weights["gate.0.weight"]))
        logit = torch.einsum("...h,oh->...o", hidden, weights["gate.2.weight"]) + weights["gate.2.bias"]
    else:
        logit = torch.einsum("...i,oi->...o", c, weights["gate.weight"]) + weights["gate.bias"]
    beta = 2.0 / (1.0 + torch.exp(-logit))
    if config.target == "constant":
        v = torch.full_like(beta, config.target_constant)
    else:
        source = {"context": c, "stream": x, "sublayer": f}[config.target]
        v = torch.einsum("...i,oi->...o", source, weights["target.weight"])
        if config.target_bias:
            v = v + weights["target.bias"]
        if config.target_sigmoid:
            v = config.target_scale / (1.0 + torch.exp(-v))
    transform = torch.eye(width, dtype=x.dtype) - beta.unsqueeze(-1) * torch.einsum("...i,...j->...ij", k, k)
    return torch.einsum("...ij,...j->...i", transform, x) + beta * v * k


def inputs(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def gradients(output, *leaves):
    weight = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)
    return torch.autograd.grad((output * weight).sum(), leaves, allow_unused=True, retain_graph=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_form_and_every_gradient(variant):
    config = VARIANTS[variant]
    torch.manual_seed(0)
    module = config.build(PLACE)
    x, f, c = inputs(2, 5, 12)
    ours, theirs = module(x, f, c), paper(config, module, x, f, c)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves = [x, f, c, *module.parameters()]
    for a, b in zip(gradients(ours, *leaves), gradients(theirs, *leaves), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_mix_zero_is_the_plain_add_and_mix_one_is_published(variant, per_channel):
    from dataclasses import replace

    config = replace(VARIANTS[variant], start="preserve", mix_per_channel=per_channel)
    torch.manual_seed(0)
    module = config.build(PLACE)
    x, f, c = inputs(2, 5, 12)
    assert torch.equal(module(x, f, c), x + f)
    gx, gf, gc = gradients(module(x, f, c), x, f, c)
    px, pf = gradients(x + f, x, f)
    assert torch.equal(gx, px) and torch.equal(gf, pf) and (gc is None or not gc.any())
    with torch.no_grad():
        module.mix.fill_(1.0)
    torch.testing.assert_close(module(x, f, c), paper(config, module, x, f, c), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("start", ["published", "preserve"])
def test_gradients_through_an_add_with_alpha(start):
    """Such an add stays in the graph; what the published form does not read of it gets no gradient."""

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = torch.nn.Linear(6, 6)

        def forward(self, x):
            return torch.add(x, torch.tanh(self.branch(x)), alpha=0.5)

    torch.manual_seed(0)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    model = resfx.rewrite(Scaled().double(), DDL(start=start), args=(x.detach(),), check=False)
    assert model.report.changed
    parameters = dict(model.named_parameters())
    call = lambda x, *values: torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (x,))
    leaves = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(call, (x, *leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preserve", ["interpolate", "erase"])
def test_preserving_start_is_bit_exact_in_every_type(dtype, preserve):
    place = Place(width=64, context_width=64, kind="mlp", depth=0, dtype=dtype, device=torch.device("cpu"))
    module = DDL(preserve=preserve).build(place)
    x, f, c = (t.to(dtype) for t in inputs(3, 7, 64))
    assert torch.equal(module(x, f, c), x + f)
    assert module(x, f, c).dtype == dtype


def test_erase_gate_is_ddl_with_a_shifted_target():
    """For a gate g > 0: DDL with beta = g and target v + |f| / g."""
    module = DDL(preserve="erase", eps=1e-9).build(PLACE)
    with torch.no_grad():
        module.gate.weight.normal_(std=0.05)
        module.gate.bias.fill_(1.0)
    x, f, c = inputs(2, 5, 12)
    gate, v = module.gates(x, f, c)
    assert (gate > 0).all()
    norm = f.norm(dim=-1, keepdim=True)
    want = delta_shortcut(x, f, gate, v + norm / gate, eps2=1e-18, add=False)
    torch.testing.assert_close(module(x, f, c), want, rtol=1e-10, atol=1e-10)


def test_published_half_precision_stays_near_float64():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        place = Place(width=64, context_width=64, kind="mlp", depth=0, dtype=dtype, device=torch.device("cpu"))
        module = DDL(start="published").build(place)
        x, f, c = (t.to(dtype) for t in inputs(3, 7, 64))
        want = paper(module.config, module.double(), *(t.double() for t in (x, f, c)))
        got = module.to(dtype)(x, f, c)
        assert (got.double() - want).abs().max() / want.abs().max() < tolerance


rows = st.integers(1, 4)
widths = st.integers(2, 9)


@settings(max_examples=40, deadline=None)
@given(rows, widths, st.floats(0.0, 2.0), st.integers(0, 10_000))
def test_oracles(n, d, beta, seed):
    """methods: the operator's eigenvalues, what it leaves alone, and what overwriting means."""
    generator = torch.Generator().manual_seed(seed)
    x, f = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    v = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    gate = torch.full((n, 1), beta, dtype=torch.float64)

    def step(a, b, t, g=gate):
        return delta_shortcut(a, b, g, t, eps2=1e-24, add=False)

    k = f / f.norm(dim=-1, keepdim=True)
    out = step(x, f, v)
    error = (k * out).sum(-1, keepdim=True) - v
    torch.testing.assert_close(error, (1 - beta) * ((k * x).sum(-1, keepdim=True) - v), atol=1e-9, rtol=1e-9)
    orthogonal = lambda a: a - (k * a).sum(-1, keepdim=True) * k
    torch.testing.assert_close(orthogonal(out), orthogonal(x), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(step(x, 3.7 * f, v), out, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(step(x, -f, -v), out, atol=1e-9, rtol=1e-9)
    overwritten = step(x, f, v, torch.ones_like(gate))
    torch.testing.assert_close((k * overwritten).sum(-1, keepdim=True), v, atol=1e-9, rtol=1e-9)
    matrix = torch.stack([step(e.expand(1, d), f[:1], torch.zeros(1, 1, dtype=torch.float64), gate[:1])[0]
                          for e in torch.eye(d, dtype=torch.float64)])  # fmt: skip
    eigenvalues = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    want = torch.tensor([1.0] * (d - 1) + [1 - beta], dtype=torch.float64).sort().values
    torch.testing.assert_close(eigenvalues.sort().values, want, atol=1e-8, rtol=1e-8)


def test_gate_and_target_start_as_published():
    torch.manual_seed(0)
    place = Place(width=4096, context_width=4096, kind="mlp", depth=0, dtype=torch.float32, device=torch.device("cpu"))
    module = DDL.repository(start="published").build(place)
    c = torch.nn.functional.rms_norm(torch.randn(256, 4096), (4096,))
    beta, v = module.gates(c, c, c)
    assert abs(beta.mean() - 1) < 0.1 and abs(v.mean() - 2) < 0.2
    assert abs(module.gate.weight.std() / (0.5 / math.sqrt(4096)) - 1) < 0.05
    assert sum(p.numel() for p in module.parameters()) == 2 * 4096 + 2
    closed = DDL(start="published", beta_init=0.0).build(PLACE)
    assert abs(2 * torch.sigmoid(closed.gate.bias).item() - 2e-6) < 1e-9, "clamped, never zero"


@pytest.mark.parametrize("bad", [
    {"target": "nowhere"}, {"eps": 0.0}, {"beta_init": 3.0}, {"eps_rule": "median"}, {"start": "warm"},
    {"gate_hidden": -1}, {"preserve": "maybe"}, {"target_scale": 0.0}, {"target_scale": -1.0},
])  # fmt: skip
def test_bad_config_is_a_value_error(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DDL(**bad)


@pytest.mark.parametrize("mix", ["none", "scalar", "channel"])
@pytest.mark.parametrize("add", [True, False])
def test_registered_operator(mix, add):
    if mix != "none" and not add:
        pytest.skip("the operator has no form with a mix and without the add")
    x, f = torch.randn(3, 5), torch.randn(3, 5)
    m = {"none": None, "scalar": torch.tensor(0.3), "channel": torch.rand(5)}[mix]
    args = [t.requires_grad_() if t is not None else None for t in (x, f, torch.rand(3, 1), torch.randn(3, 1), m)]
    torch.library.opcheck(torch.ops.resfx.delta_shortcut.default, (*args, None, 1e-10, add))
    got = torch.ops.resfx.delta_shortcut(*args, None, 1e-10, add)
    want = delta_shortcut(*args, eps2=1e-10, add=add)
    assert torch.equal(got, want)
    leaves = [a for a in args if a is not None]
    for a, b in zip(gradients(got, *leaves), gradients(want, *leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_function_transforms_agree_with_the_formula():
    x, f, _ = (t.detach() for t in inputs(4, 6))
    beta, v = torch.rand(4, 1, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    run = lambda a: delta_shortcut(a, f, beta, v, add=False)
    jacobian = torch.func.jacrev(run)(x)
    torch.testing.assert_close(torch.func.jacfwd(run)(x), jacobian)
    per_row = torch.func.vmap(lambda a, b, g, t: delta_shortcut(a, b, g, t, add=False))(x, f, beta, v)
    torch.testing.assert_close(per_row, run(x))
    _, tangent = torch.func.jvp(run, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, jacobian.sum((2, 3)))


def test_both_layers_of_a_gate_start_as_the_authors_draw_them():
    from resfx.methods.base import Place

    torch.manual_seed(0)
    place = Place(width=64, context_width=64, kind="mlp", depth=0, dtype=torch.float32, device=torch.device("cpu"))
    first, _, last = DDL(gate_hidden=4096).build(place).gate
    for layer in (first, last):  # by the width of the stream, whatever the width between
        assert abs(float(layer.weight.detach().std()) / (0.5 / 8) - 1) < 0.05


@pytest.mark.parametrize("options", [{}, {"gate_hidden": 5, "target": "stream", "target_bias": True}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_compiled_gates_are_sums_over_the_row_and_nothing_else(options, dtype):
    """No product with a single column is left in the graph; values and gradients are those of the linear maps."""
    from resfx.methods.base import Place

    torch._dynamo.reset()
    torch.manual_seed(1)
    place = Place(width=12, context_width=12, kind="mlp", depth=0, dtype=dtype, device=torch.device("cpu"))
    site = DDL(start="published", **options).build(place)
    x, f, c = (torch.randn(3, 5, 12, dtype=dtype) for _ in range(3))
    products = []

    def look(graph, example):
        products.extend(n for n in graph.graph.nodes if n.target in (torch._C._nn.linear, torch.nn.functional.linear))
        return graph.forward

    got = torch.compile(site, backend=look, fullgraph=True)(x, f, c)
    assert len(products) == ("gate_hidden" in options)
    want = site(x, f, c)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype is torch.float64 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(got, want, **close)
    parameters = list(site.parameters())
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), parameters) for y in (got, want)), strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=close["rtol"], atol=close["atol"] * float(b.abs().max()))
