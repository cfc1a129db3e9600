"""The C++ kernels in eager mode: the same numbers as plain torch, and only where nobody can tell otherwise."""

from __future__ import annotations

import pytest
import torch
from hosts.onnx_nodes import DTYPES, tolerance
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import resfx
from resfx.ops import native
from resfx.ops.attention_read.formula import attention_read, attention_read_formula
from resfx.ops.channels.formula import combine, combine_formula, delta_write, delta_write_formula, mix, mix_formula
from resfx.ops.delta.formula import delta_formula, delta_shortcut
from resfx.ops.short_convolution.formula import short_convolution, short_convolution_formula
from resfx.ops.sinkhorn.formula import sinkhorn, sinkhorn_formula
from resfx.ops.weighted_sum.formula import weighted_sum, weighted_sum_formula
from resfx.ops.window.formula import windowed_attention, windowed_attention_reference, windowed_attention_row


@pytest.fixture
def calls(library, monkeypatch):
    """The kernels that gave results, by name."""
    monkeypatch.setenv("RESFX_NATIVE", "1")
    monkeypatch.setattr(native, "built_kernels", lambda: library)
    native._library.cache_clear()
    found, run = [], native.Library.run

    def watched(self, name, *given):
        done = run(self, name, *given)
        found.extend([name] if done else [])
        return done

    monkeypatch.setattr(native.Library, "run", watched)
    yield found
    native._library.cache_clear()


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def _published(x, f, beta, v, mix, total):
    return delta_formula(x, f, beta, v, mix, total, 1e-10, True)


CASES = {
    "DeltaShortcut": (
        delta_shortcut, _published,
        lambda: (draw(2, 3, 5), draw(2, 3, 5), draw(2, 3, 1), draw(2, 3, 1), draw(5), None),
    ),
    "DeltaShortcut, total": (
        delta_shortcut, _published,
        lambda: (draw(2, 3, 5), draw(2, 3, 5), draw(2, 3, 1), draw(2, 3, 1), draw(1), draw(2, 3, 5)),
    ),
    "WeightedSum": (
        weighted_sum, weighted_sum_formula,
        lambda: ([draw(2, 3, 5), draw(2, 3, 5)], draw(2, 3, 2), draw(2, 3, 5)),
    ),
    "AttentionRead": (
        lambda s, q, b: attention_read(s, q, b, eps=1e-6, relative=True),
        lambda s, q, b: attention_read_formula(s, q, b, None, 1e-6, True),
        lambda: ([draw(2, 3, 5), draw(2, 3, 5), draw(2, 3, 5)], draw(5), draw(2, 3, 5)),
    ),
    "Sinkhorn": (lambda x: sinkhorn(x, 20, 8), lambda x: sinkhorn_formula(x, 20, 8), lambda: (draw(3, 4, 4),)),
    "Sinkhorn, three": (lambda x: sinkhorn(x, 20), lambda x: sinkhorn_formula(x, 20, 0), lambda: (draw(2, 3, 3),)),
    "CombineChannels": (combine, combine_formula, lambda: (draw(2, 3, 5), draw(2, 3, 1), draw(2, 1) * 0 + 1)),
    "CombineChannels, features": (combine, combine_formula, lambda: (draw(2, 3, 5), draw(3, 5), None)),
    "MixChannels": (
        lambda *a: mix(*a, False), lambda *a: mix_formula(*a, False),
        lambda: (draw(2, 3, 5), draw(2, 5), draw(2, 3), draw(2, 3, 3)),
    ),
    "DeltaWrite": (
        lambda *a: delta_write(*a, 1e-3, True, True), lambda *a: delta_write_formula(*a, 1e-3, True, True),
        lambda: (draw(2, 3, 5), draw(2, 5), draw(2, 1), draw(2, 3), draw(1)),
    ),
    "ShortConvolution": (
        lambda *a: short_convolution(*a, True, 2, 4), lambda *a: short_convolution_formula(*a, True, 2, 4),
        lambda: (draw(2, 4, 3), draw(3, 3), draw(3), draw(2, 4, 3)),
    ),
    "WindowedAttention": (
        lambda *a: windowed_attention(*a, 3), lambda *a: windowed_attention_reference(*a, 3),
        lambda: (draw(2, 4, 6, 8), draw(2, 2, 6, 8), draw(2, 2, 6, 8)),
    ),
    "WindowedAttentionRow": (
        windowed_attention_row, lambda q, k, v: windowed_attention_row(q, k, v, scale=8**-0.5),
        lambda: (draw(2, 4, 8), [draw(2, 4, 8), draw(2, 4, 8)], [draw(2, 4, 8), draw(2, 4, 8)]),
    ),
}  # fmt: skip


def given(name, dtype):
    torch.manual_seed(0)
    to = lambda x: (
        [t.to(dtype) for t in x] if isinstance(x, list) else x.to(dtype) if isinstance(x, torch.Tensor) else x
    )
    return tuple(map(to, CASES[name][2]()))


def double(args):
    to = lambda x: [t.double() for t in x] if isinstance(x, list) else x.double() if isinstance(x, torch.Tensor) else x
    return tuple(map(to, args))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_kernels_give_what_the_formula_gives(name, dtype, calls):
    public, formula, _ = CASES[name]
    if name.startswith("Sinkhorn") and dtype in (torch.float16, torch.bfloat16):
        pytest.skip("takes float32 and float64")
    args = given(name, dtype)
    with torch.no_grad():
        got = public(*args)
        assert calls == [name.split(",")[0]]
        want = formula(*double(args))
    assert got.dtype == dtype and got.shape == want.shape
    assert (got.double() - want).abs().max() <= 8 * tolerance(dtype, want)


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_not_lost(name, calls):
    public, _, _ = CASES[name]
    args = given(name, torch.float32)
    first = args[0][0] if isinstance(args[0], list) else args[0]
    first.requires_grad_()
    out = public(*args)
    out.square().sum().backward()
    wide = double(args)
    other = wide[0][0] if isinstance(wide[0], list) else wide[0]
    other.detach_().requires_grad_()
    CASES[name][1](*wide).square().sum().backward()
    assert torch.allclose(first.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **kwargs or {})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_who_watches_operators_sees_them(calls):
    args = given("DeltaShortcut", torch.float32)
    with Seen() as seen:
        delta_shortcut(*args)
    graph = make_fx(lambda *a: delta_shortcut(*a))(*args).graph
    torch.jit.trace(delta_shortcut, args[:5], check_trace=False)
    torch.func.vmap(delta_shortcut, (0, 0, 0, 0, None, None))(*args)
    assert not calls and any("addcmul" in n for n in seen.names)
    assert any(n.op == "call_function" for n in graph.nodes)


class Own(torch.Tensor):
    pass


@torch.no_grad()
def test_what_kernels_do_not_know_torch_computes(calls, monkeypatch):
    x, f, beta, v, mixing, _ = given("DeltaShortcut", torch.float32)
    want = delta_shortcut(x, f, beta, v, mixing)
    calls.clear()
    assert torch.allclose(delta_shortcut(x.as_subclass(Own), f, beta, v, mixing), want)
    assert torch.allclose(delta_shortcut(x, f.double(), beta, v, mixing).float(), want)  # two types
    assert delta_shortcut(x.to("meta"), f.to("meta"), beta.to("meta"), v.to("meta")).is_meta
    assert delta_shortcut(x[:0], f[:0], beta[:0], v[:0]).shape == (0, 3, 5)
    monkeypatch.setattr(native, "SMALL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.allclose(delta_shortcut(x, f, beta, v, mixing), want)
    assert not calls
    monkeypatch.undo()
    wide = v.expand(2, 3, 4)[..., :1]  # a view with gaps
    assert torch.allclose(delta_shortcut(x.mT.contiguous().mT, f, beta, wide, mixing), want)


@torch.no_grad()
def test_shapes_that_only_torch_broadcasts(calls):
    args = given("CombineChannels", torch.float32)
    state, weights, unit = args
    assert torch.equal(combine(state, weights[:1], unit), combine_formula(state, weights[:1], unit))


@pytest.mark.every(5)
@pytest.mark.parametrize("mode", ["ddl", resfx.DDL(value_channels=3), "attnres", "denseformer", "depth_read", "mhc",
                                  "hyper_connections", "canon", "short_swa"], ids=str)  # fmt: skip
def test_the_start_is_exact_and_training_sees_what_evaluation_does(mode, calls):
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=64, hidden_size=48, num_hidden_layers=4, num_attention_heads=4,
                                      intermediate_size=64, num_key_value_heads=2)  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 64, (2, 7))
    new = resfx.rewrite(model, mode, args=(ids,))
    with torch.no_grad():
        calls.clear()
        assert torch.equal(new(ids).logits, model(ids).logits)
        assert calls
        for p in resfx.of(new).new_parameters().values():
            p.add_(0.05 * torch.randn_like(p))
        small = new(ids).logits
    assert torch.allclose(small, new(ids).logits, atol=2e-5)


def test_a_library_that_cannot_be_used_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "kernels-0.so"
    broken.write_text("no library")
    monkeypatch.setenv("RESFX_NATIVE", "1")
    monkeypatch.setattr(native, "built_kernels", lambda: broken)
    native._library.cache_clear()
    with torch.no_grad(), pytest.warns(UserWarning, match="cannot be used.*resfx kernels"):
        x = torch.randn(2, 3, 5)
        delta_shortcut(x, x, x[..., :1], x[..., :1])
    native._library.cache_clear()


def test_it_can_be_switched_off(calls, monkeypatch):
    monkeypatch.setenv("RESFX_NATIVE", "0")
    native._library.cache_clear()
    with torch.no_grad():
        delta_shortcut(*given("DeltaShortcut", torch.float32))
    assert not calls
