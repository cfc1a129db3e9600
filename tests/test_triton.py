"""Triton kernels against the formulas, in a process of their own: the interpreter is chosen before Triton is imported.

No GPU is needed, and none is used. That the compiler takes the kernels as they are launched is checked as well.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch.utils import _pytree as pytree

from resfx.ops import _channels, _depth, _local_conv, _operators, delta, sinkhorn, window

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
inside = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_under_the_interpreter")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@pytest.mark.skipif(INTERPRETED, reason="already there")
def test_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_importing_the_library_does_not_import_triton():
    code = "import sys, resfx; resfx.ops.method.methods(); assert 'triton' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def kernels(monkeypatch):
    """The path of CUDA tensors, for the tensors at hand."""
    monkeypatch.setattr(_operators, "KERNEL_DEVICES", {"cpu"})


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def agree(public, formula, args, dtype, node="GeneratedBackwardFor_resfx"):
    """Result and every gradient of the kernels against the formula in float64; ``args`` are positional."""
    leaves, spec = pytree.tree_flatten(args)
    real = [isinstance(x, torch.Tensor) and x.is_floating_point() for x in leaves]
    given = [x.detach().requires_grad_() if r else x for x, r in zip(leaves, real, strict=True)]
    wide = [x.detach().double().requires_grad_() if r else x for x, r in zip(leaves, real, strict=True)]
    got = public(*pytree.tree_unflatten(given, spec))
    want = formula(*pytree.tree_unflatten(wide, spec))
    assert node in type(got.grad_fn).__name__ and got.shape == want.shape
    grad = torch.randn(want.shape, dtype=torch.float64).to(got.dtype)
    floats = lambda xs: [x for x, r in zip(xs, real, strict=True) if r]
    found = torch.autograd.grad(got, floats(given), grad)
    wanted = torch.autograd.grad(want, floats(wide), grad.double())
    tolerance = TOLERANCE[dtype]
    for i, (a, e) in enumerate(zip((got, *found), (want, *wanted), strict=True)):
        near = tolerance * (2 if i else 1) * max(float(e.detach().abs().max()), 1e-2)
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=near, msg=lambda m, i=i: f"number {i}: {m}")
    for a, leaf in zip(found, floats(given), strict=True):
        assert a.dtype == leaf.dtype and a.shape == leaf.shape


def turned(x):
    """The same numbers, in memory the other way round."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


@inside
@dtypes
@pytest.mark.parametrize("width", [3, 129])
@pytest.mark.parametrize("mix", ["none", "scalar", "channel"])
@pytest.mark.parametrize("base", ["x", "sum", "total"])
def test_delta_shortcut(base, mix, dtype, width, kernels):
    x, f, b, v = draw(2, 3, width), draw(2, 3, width), draw(2, 3, 1), draw(2, 3, 1)
    m = {"none": None, "scalar": torch.tensor(0.3), "channel": draw(width)}[mix]
    total = (x + 0.5 * f).to(dtype) if base == "total" else None
    cast = lambda t: None if t is None else t.to(dtype)
    args = (cast(x), cast(f), b.float(), v.float(), cast(m), total, 1e-4, base != "x")
    agree(delta._operator, delta.delta_formula, args, dtype)


@inside
@dtypes
def test_a_closed_mix_is_the_plain_add_and_layouts_do_not_matter(dtype):
    from resfx.ops import _delta_triton as kernels

    # Whole numbers: the interpreter cuts off where a GPU rounds to bfloat16, so sums must need neither.
    x, f, grad = (torch.randint(-60, 60, (24, 5)).to(dtype).T for _ in range(3))
    b, v, m = torch.rand(5, 1), torch.randn(1, 1).expand(5, 1), torch.zeros((), dtype=dtype)
    assert torch.equal(kernels.forward(x, f, b, v, m, None, 1e-10, True), x + f)
    gx, gf, gb, gv, gm, *_ = kernels.gradients(grad, x, f, b, v, m, None, 1e-10, True)
    assert torch.equal(gx, grad) and torch.equal(gf, grad) and not gb.any() and not gv.any() and gm.any()


@inside
def test_more_rows_than_programs(monkeypatch, kernels):
    from resfx.ops import _attention_read_triton, _delta_triton

    for module in (_delta_triton, _attention_read_triton):
        monkeypatch.setattr(module, "PROGRAMS", 4)
    args = (draw(11, 7), draw(11, 7), draw(11, 1), draw(11, 1), draw(7), None, 1e-6, True)
    agree(delta._operator, delta.delta_formula, [a.float() if torch.is_tensor(a) else a for a in args], torch.float32)
    sources, query = [draw(11, 7).float() for _ in range(3)], draw(7).float()
    args = (sources, query, None, None, 1e-6, False)
    agree(_depth._attention_read, _depth.attention_read_formula, args, torch.float32)


@inside
@dtypes
@pytest.mark.parametrize("count, width", [(1, 5), (2, 64), (5, 33)])
@pytest.mark.parametrize("relative, base, gate", [(True, True, False), (False, False, False), (False, True, True)])
def test_attention_read(count, width, relative, base, gate, dtype, kernels):
    sources = [draw(2, 3, width, dtype=dtype) for _ in range(count)]
    sources[0] = turned(sources[0])
    added = turned(draw(2, 3, width, dtype=dtype)) if base else None
    opened = draw(dtype=dtype) if gate else None
    args = (sources, draw(width, dtype=dtype), added, opened, 1e-6, relative)
    agree(_depth._attention_read, _depth.attention_read_formula, args, dtype)


@inside
@dtypes
@pytest.mark.parametrize("count", [2, 3, 7, 41])
def test_a_zero_query_keeps_the_base_bit_for_bit(count, dtype, kernels):
    sources, base = [draw(4, 9, dtype=dtype) for _ in range(count)], draw(4, 9, dtype=dtype)
    got = _depth.attention_read(sources, torch.zeros(9, dtype=dtype), base, eps=1e-6, relative=True)
    assert torch.equal(got, base)


@inside
@dtypes
@pytest.mark.parametrize("count, width", [(1, 5), (6, 33)])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("base", [False, True])
def test_weighted_sum(count, width, per_token, base, dtype, kernels):
    sources = [draw(2, 3, width, dtype=dtype) for _ in range(count)]
    sources[-1] = sources[-1][:, :1].expand(2, 3, width)
    weights = turned(draw(2, 3, count)).float() if per_token else draw(count, dtype=dtype)
    added = turned(draw(2, 3, width, dtype=dtype)) if base else None
    agree(_depth._weighted_sum, _depth.weighted_sum_formula, (sources, weights, added), dtype)


@inside
def test_lists_that_begin_anywhere_in_memory(kernels):
    flat = draw(50).float()
    sources = [flat[1:13].view(3, 4), flat[14:26].view(3, 4)]
    assert sources[0].data_ptr() % 16
    agree(_depth._weighted_sum, _depth.weighted_sum_formula, (sources, draw(2).float(), None), torch.float32)


WINDOWS = {
    "causal, groups": (7, 7, 3, 4, 2, True, False, False),
    "causal, padded, blocks": (70, 70, 5, 2, 1, True, False, True),
    "last queries": (4, 45, 40, 2, 2, True, False, True),
    "centred": (37, 37, 20, 2, 2, False, False, False),
    "centred, padded": (9, 9, 4, 2, 1, False, False, True),
    "chunks so far": (37, 37, 20, 2, 1, True, True, True),
    "chunks": (37, 37, 5, 1, 1, False, True, True),
    "beyond the length": (5, 5, 30, 1, 1, True, False, False),
}


@inside
@dtypes
@pytest.mark.parametrize("form", WINDOWS)
def test_windowed_attention(form, dtype, kernels):
    size, length, reads, heads, shared, causal, chunk, masked = WINDOWS[form]
    q = draw(2, size, heads, 5, dtype=dtype).transpose(1, 2)
    k, v = draw(2, shared, length, 5, dtype=dtype), draw(2, length, shared, 18, dtype=dtype).transpose(1, 2)
    mask = torch.arange(length) >= torch.tensor([[0], [length // 2 + 1]]) if masked else None
    args = (q, k, v, mask, reads, causal, chunk, 0.3)
    agree(window._operator, window.windowed_attention_formula, args, dtype)
    out = window._operator(*args)
    assert out.transpose(1, 2).is_contiguous()


@inside
def test_windows_of_one_and_free_leading_axes(kernels):
    q, k, v = (draw(2, 3, 2, 6, 4).float() for _ in range(3))
    assert torch.equal(window.windowed_attention(q, k, v, 1), v)
    args = (q, k, v, torch.rand(3, 6) > 0.3, 2, True, False, 0.5)
    agree(window._operator, window.windowed_attention_formula, args, torch.float32)


@inside
def test_windows_over_parts_of_one_projection(kernels):
    q, k, v = (x.unflatten(-1, (2, 4)).transpose(1, 2) for x in draw(2, 7, 24).float().chunk(3, -1))
    assert q.stride(2) == 24
    agree(window._operator, window.windowed_attention_formula, (q, k, v, None, 3, True, False, 0.5), torch.float32)


@inside
@dtypes
@pytest.mark.parametrize("length, size, taps, left", [(5, 5, 4, 3), (70, 70, 3, 1), (9, 6, 4, 0), (3, 3, 1, 0)])
@pytest.mark.parametrize("silu, extras", [(False, False), (True, True)])
def test_short_convolution(length, size, taps, left, silu, extras, dtype, kernels):
    x, base = turned(draw(2, length, 7, dtype=dtype)), turned(draw(2, size, 7, dtype=dtype))
    bias = draw(7, dtype=dtype) if extras else None
    args = (x, draw(7, taps, dtype=dtype), bias, base if extras else None, silu, left, size)
    agree(_local_conv._operator, _local_conv.short_convolution_formula, args, dtype)


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
    agree(_channels._wide_combine, _channels._combine_beyond, args, dtype)


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
    from resfx.ops import _sinkhorn_triton

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
    from resfx.ops import _sinkhorn_triton as kernels

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


class NoDevice:
    """A driver whose GPU is not there, for the compiler to ask."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Kernels are compiled to machine code for an H100, and not launched; the list of their names."""
    from triton import runtime

    names = []
    run = runtime.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        assert kernel.asm["cubin"]
        names.append(f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}")

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(runtime.JITFunction, "run", compile_only)
    monkeypatch.setattr(runtime.driver, "_active", NoDevice())
    return names


def launches(name, dtype):
    """The arguments of an operator as a model of width 80 hands them over."""
    x = torch.randn(2, 4, 80).to(dtype)
    return {
        "delta": [(x, x, x[..., :1].float(), x[..., :1].float(), torch.tensor(0.0), None, 1e-10, True)],
        "weighted_sum": [([x, x, x], torch.randn(3), x), ([x, x], torch.randn(2, 4, 2), None)],
        "attention_read": [([x] * 3, x[0, 0], x, None, 1e-6, True), ([x] * 2, x[0, 0], None, x[0, 0, 0], 1e-6, False)],
        "short_convolution": [
            (x, torch.randn(80, 4), torch.randn(80), x, True, 3, 4),
            (x, torch.randn(80, 4), None, None, False, 3, 4),
        ],
        "wide_mix": [(x, x[:, 0], x[:, :, 0], x[..., :4], unit) for unit in (True, False)],
        "wide_combine": [(x, x[..., :1], x[:, 0, :1]), (x, x[0, :, :1], None)],
        "wide_delta": [
            (x, x[:, 0], x[:, 0, :1], x[:, :, 0], m, 1e-10, True, True) for m in (torch.tensor(0.0), x[0, 0])
        ],
        "sinkhorn": [(torch.randn(2, 3, n, n), 20, newton) for n, newton in ((3, 8), (4, 0), (4, 8))],
        "windowed_attention": [
            (x.view(1, 2, 4, 80), x[:1].view(1, 1, 4, 80), x[:1].view(1, 1, 4, 80), m, 3, True, chunk, 0.1)
            for m, chunk in ((torch.ones(1, 4, dtype=torch.bool), False),)
        ],
    }[name]


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled there")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, *(pytest.param(t, marks=pytest.mark.matrix)
                                                     for t in (torch.float32, torch.float16))])  # fmt: skip
@pytest.mark.parametrize(
    "name",
    [
        "delta",
        "weighted_sum",
        "attention_read",
        "windowed_attention",
        "short_convolution",
        "wide_delta",
        "wide_mix",
        "wide_combine",
        "sinkhorn",
    ],
)
def test_kernels_compile_for_a_gpu(name, dtype, compiled):
    kernels = _operators._kernel_module(name)
    for args in launches(name, dtype):
        assert kernels.supported(*args)
        out = kernels.forward(*args)
        kernels.gradients(torch.empty_like(out), *args)
    assert {n.partition(".")[2].partition("_")[2].partition("_")[0] for n in compiled} >= {"forward", "backward"}
