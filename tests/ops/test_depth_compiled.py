"""Reads over many sources, compiled in groups: forward and gradients, exact start, one region for every count."""

from __future__ import annotations

import pytest
import torch

from resfx.methods.depth.attn_res import AttnRes
from resfx.methods.depth.base import DepthPlace
from resfx.methods.depth.delta_attn_res import DeltaAttnRes
from resfx.ops.attention_read.formula import attention_read
from resfx.ops.attention_read.grouped import GROUP, in_groups

KINDS = {"published": (False, False, False), "preserving": (True, True, False), "gated": (True, False, True)}
EPS = 1e-6


def operands(count, kind, dtype=torch.float64, size=(2, 5, 16), query=0.4):
    generator = torch.Generator().manual_seed(count)
    draw = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)
    with_base, _, with_gate = KINDS[kind]
    leaf = lambda t: t.to(dtype).requires_grad_()
    sources = [leaf(draw(*size) * (1 + j % 3)) for j in range(count)]
    base = leaf(draw(*size)) if with_base else None
    gate = leaf(torch.tensor(0.7)) if with_gate else None
    return sources, leaf(query * draw(size[-1])), base, gate


def paper(sources, query, base, gate, relative):
    """Equations 2 to 4, with everything in one float64 tensor."""
    sources, query = torch.stack([s.double() for s in sources]), query.double()
    keys = sources / (sources.square().mean(-1, keepdim=True) + EPS).sqrt()
    weights = (keys @ query).softmax(0)
    if relative:
        weights = len(sources) * weights - 1
    total = torch.einsum("n...,n...d->...d", weights, sources)
    total = total if gate is None else gate.double() * total
    return total if base is None else base.double() + total


def compiled(count, kind, backend="aot_eager"):
    torch._dynamo.reset()
    relative = KINDS[kind][1]

    def call(sources, query, base, gate):
        return attention_read(sources, query, base, gate, eps=EPS, relative=relative)

    return torch.compile(call, backend=backend, fullgraph=True)


def leaves(args):
    sources, *rest = args
    return [*sources, *(t for t in rest if t is not None)]


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-10),
        (torch.bfloat16, 2e-2),
        pytest.param(torch.float32, 1e-5, marks=pytest.mark.matrix),
        pytest.param(torch.float16, 3e-3, marks=pytest.mark.matrix),
    ],
)
@pytest.mark.parametrize("count", [3, GROUP + 1, pytest.param(3 * GROUP, marks=pytest.mark.matrix)])
def test_grouped_reads_follow_the_equations(count, kind, dtype, tolerance):
    args = operands(count, kind, dtype)
    exact = [t.detach().double().requires_grad_() for t in leaves(args)]
    given = iter(exact)
    like = [[next(given) for _ in args[0]], *(None if t is None else next(given) for t in args[1:])]
    got, want = compiled(count, kind)(*args), paper(*like, KINDS[kind][1])
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * float(want.detach().abs().max()))
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    found = torch.autograd.grad(got, leaves(args), grad)
    wanted = torch.autograd.grad(want, exact, grad.double())
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("count", "backend", "dtype"),
    [
        (21, "aot_eager", torch.bfloat16),
        (GROUP + 1, "inductor", torch.float32),
        pytest.param(4, "inductor", torch.bfloat16, marks=pytest.mark.matrix),
        pytest.param(21, "inductor", torch.bfloat16, marks=pytest.mark.matrix),
        pytest.param(30, "aot_eager", torch.float32, marks=pytest.mark.matrix),
    ],
)
def test_equal_scores_keep_every_bit_of_the_base(count, backend, dtype):
    args = operands(count, "preserving", dtype, query=0.0)
    run = compiled(count, "preserving", backend)
    sources, query, base, _ = args
    out = run(*args)
    assert torch.equal(out, base)
    grad = torch.randn_like(out)
    *others, for_base = torch.autograd.grad(out, [*sources, base], grad)
    assert torch.equal(for_base, grad) and not any(g.any() for g in others)
    assert torch.autograd.grad(run(*args), query, grad)[0].any()
    with torch.no_grad():
        assert torch.equal(run(*args), base)


def test_scores_far_apart_do_not_overflow():
    sources, query, base, _ = operands(20, "preserving", torch.float32, query=300.0)
    for kind in ("published", "preserving"):
        with torch.no_grad():
            got = compiled(20, kind)(sources, query, base, None)
        want = paper(sources, query, base, None, kind == "preserving")
        assert got.isfinite().all()
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.matrix
@pytest.mark.skipif(torch.__version__ < "2.13", reason="earlier compilers write these regions out")
def test_every_count_shares_its_regions():
    """A chain of reads over more sources each: as many regions as group sizes, not as reads.

    (What is called once is no region.)
    """
    torch._dynamo.reset()
    seen = {}

    def look(graph, example):
        calls = [n for n in graph.graph.nodes if n.target is torch.ops.higher_order.invoke_subgraph]
        seen["calls"], seen["regions"] = len(calls), len({n.args[0].target for n in calls})
        return graph.forward

    sources, query, _, _ = operands(GROUP, "published", torch.float32)
    sources, query = [s.detach() for s in sources], query.detach()

    def chain(query, *sources):
        states = list(sources)
        for _ in range(2 * GROUP + 1):
            states.append(attention_read(states, query, eps=EPS).tanh())
        return states[-1]

    with torch.no_grad():
        got = torch.compile(chain, backend=look, fullgraph=True)(query, *sources)
        torch.testing.assert_close(got, chain(query, *sources))
    calls = sum(len(in_groups(range(n))) for n in range(GROUP + 1, 3 * GROUP + 1))
    assert seen == {"calls": calls, "regions": GROUP + 2}


def test_the_remainder_comes_first():
    for count in range(1, 60):
        sizes = [len(g) for g in in_groups(range(count))]
        assert sum(sizes) == count and all(s == GROUP for s in sizes[1:]) and 1 <= sizes[0] <= GROUP


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "method",
    [AttnRes(), AttnRes(recompute=True), pytest.param(DeltaAttnRes(), marks=pytest.mark.matrix)],
    ids=["attnres", "attnres, recomputed", "delta_attnres"],
)
def test_modules_compile_like_they_run(method):
    """With the option that recomputes reads in the backward pass too; a source that comes twice takes the formula."""
    torch._dynamo.reset()
    place = DepthPlace(
        width=16, context_width=16, kind="attention", depth=0, dtype=torch.float64, device=torch.device("cpu"),
        read=11, sources=12, last=False, outputs=1,
    )  # fmt: skip
    read = method.build(place)
    with torch.no_grad():
        for parameter in read.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    sources, _, x, _ = operands(12, "preserving")
    wanted = [*sources, x, *read.parameters()]
    run = torch.compile(read, backend="aot_eager", fullgraph=True)
    for given in (sources, [*sources[:-1], sources[0]]):
        got, want = run(given, x), read(given, x)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(y.square().sum(), wanted, allow_unused=True) for y in (got, want)]
        for a, b in zip(*grads, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
