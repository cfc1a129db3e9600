"""The mixers as modules: against float64 renderings, their oracles, and one step at a time."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

import resfx
from resfx.methods.base import Place
from resfx.methods.sequence.short_swa import rotate

F64 = torch.float64


def place(width=16, causal=True, heads=4, dtype=F64, norm=True):
    gain = nn.LayerNorm(width, dtype=dtype) if norm else None
    return Place(width=width, context_width=width, kind="attention", depth=0, dtype=dtype,
                 device=torch.device("cpu"), heads=heads, causal=causal, norm=gain)  # fmt: skip


def built(config, **options):
    module = config.build(place(**options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=F64))
    return module


def sample(t=11, width=16, batch=3, seed=1):
    h = torch.randn(batch, t, width, generator=torch.Generator().manual_seed(seed), dtype=F64)
    mask = torch.ones(batch, t, dtype=torch.int64)
    for row in range(batch):
        mask[row, : 2 * row] = 0
    return h, mask


def reads(t, w, kind, causal):
    """Which positions each position reads, spelled out."""
    if kind == "chunk":
        return [[j for j in range(t) if j // w == i // w and (j <= i or not causal)] for i in range(t)]
    if causal:
        return [list(range(max(0, i - w + 1), i + 1)) for i in range(t)]
    return [[j for j in range(t) if i - w // 2 <= j <= i + (w - 1) // 2] for i in range(t)]


def swa_reference(module, h, mask, w, kind, causal, heads, size=4):
    mean = h.mean(-1, keepdim=True)
    norm = module.norm
    c = (h - mean) / torch.sqrt(((h - mean) ** 2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias
    b, t, _ = h.shape
    q, k, v = ((c @ p.weight.T).view(b, t, heads, size) for p in (module.q, module.k, module.v))
    rows = []
    for i, window in enumerate(reads(t, w, kind, causal)):
        scores = torch.einsum("bhe,bjhe->bhj", q[:, i], k[:, window]) / math.sqrt(size)
        real = mask[:, window].bool().unsqueeze(1)
        weights = torch.where(real, scores.exp(), 0)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)
        rows.append(torch.einsum("bhj,bjhe->bhe", weights, v[:, window]).flatten(1))
    return torch.stack(rows, 1) @ module.o.weight.T


@pytest.mark.parametrize("heads, size", [(4, 4), (1, 6), (2, 2), (3, 8)])
@pytest.mark.parametrize("kind", ["sliding", "chunk"])
@pytest.mark.parametrize("causal", [True, False])
def test_short_window_equals_its_equations(kind, causal, heads, size):
    """As many features as the stream, fewer, and more."""
    module = built(resfx.ShortSWA(window=4, kind=kind, heads=heads, head_dim=size), causal=causal)
    h, mask = sample()
    h.requires_grad_()
    got = module(h, mask)
    want = swa_reference(module, h, mask, 4, kind, causal, heads, size)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    weight = torch.cos(torch.arange(got.numel(), dtype=F64)).view_as(got)
    inputs = [h, *module.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


class Products(TorchFunctionMode):
    """Counts calls of ``linear``."""

    count = 0

    def __torch_function__(self, f, types, args=(), kwargs=None):
        self.count += f is nn.functional.linear
        return f(*args, **(kwargs or {}))


def test_narrow_projections_are_one_product_where_the_input_gets_a_gradient():
    h, _ = sample()
    h.requires_grad_()

    def run(module):
        with Products() as products:
            return module(h), products.count

    assert run(built(resfx.ShortSWA(window=4)))[1] == 4, "as wide as the stream: nothing to gain"
    module, seen = built(resfx.ShortSWA(window=4, heads=2, head_dim=2)), []
    want, count = run(module)
    assert count == 2
    with torch.no_grad():
        assert run(module)[1] == 4, "no copy of the weights where none is needed"
    handle = module.k.register_forward_hook(lambda *_: seen.append("k"))
    assert run(module)[1] == 4 and seen == ["k"]
    handle.remove()
    module.q = nn.Sequential(module.q, Doubled())
    got, count = run(module)
    assert count == 4 and not torch.allclose(got, want), "a module in a projection's place is called"
    module.q = module.q[0]
    module.v.bias = nn.Parameter(torch.ones(4, dtype=F64))
    assert not torch.allclose(run(module)[0], want)
    module.v.bias = None
    torch.testing.assert_close(run(module)[0], want, atol=0, rtol=0)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def test_window_beyond_the_length_is_full_attention():
    module = built(resfx.ShortSWA(window=50))
    h, mask = sample()
    want = swa_reference(module, h, torch.ones_like(mask), 11, "sliding", True, 4)
    torch.testing.assert_close(module(h), want, atol=1e-12, rtol=0)


def test_window_of_one_is_the_value_path():
    module = built(resfx.ShortSWA(window=1))
    h, _ = sample()
    torch.testing.assert_close(module(h), module.o(module.v(module.norm(h))), atol=1e-12, rtol=0)


def test_output_does_not_depend_on_the_token_that_left_the_window():
    module = built(resfx.ShortSWA(window=4))
    h, _ = sample()
    moved = h.clone()
    moved[:, 3, 0] += 1
    difference = (module(h) - module(moved)).abs().amax((0, 2))
    assert (difference[3:7] > 1e-6).all()
    assert (difference[:3] == 0).all() and (difference[7:] == 0).all()


def test_chunks_are_block_diagonal():
    module = built(resfx.ShortSWA(window=4, kind="chunk"))
    h, _ = sample(t=12)
    parts = torch.cat([module(h[:, i : i + 4]) for i in (0, 4, 8)], 1)
    torch.testing.assert_close(module(h), parts, atol=1e-12, rtol=0)


def test_rotation_sees_only_differences_of_positions():
    q, k = torch.randn(2, 1, 2, 9, 8, dtype=F64)
    whole_q, whole_k = rotate(q, k)
    last_q, last_k = rotate(q[..., 5:, :], k[..., 2:, :])
    torch.testing.assert_close(last_q @ last_k.mT, (whole_q @ whole_k.mT)[..., 5:, 2:], atol=1e-12, rtol=0)
    half = torch.arange(4, dtype=F64)
    angle = 3 * 10000.0 ** (-half / 4)
    z = torch.complex(q[0, 0, 3, :4], q[0, 0, 3, 4:]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(whole_q[0, 0, 3], torch.cat((z.real, z.imag)), atol=1e-12, rtol=0)


CONFIGS = [
    resfx.ShortSWA(window=4), resfx.ShortSWA(window=4, kind="chunk"), resfx.ShortSWA(window=5, rope=True),
    resfx.ShortSWA(window=4, heads=1, head_dim=6, rope=True),
    resfx.ShortSWA(window=3, kind="chunk", rope=True, placement="branch"), resfx.Canon(kernel=3), resfx.ShortConv(),
    resfx.Canon(bias=True, activation="silu"), resfx.ShortConv(residual=False, start="published"),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("splits", [[1] * 11, [6, 1, 1, 3], [1, 2, 8], [10, 1]])
@pytest.mark.parametrize("padded", [True, False])
def test_any_split_into_calls_equals_one_call(config, splits, padded):
    module = built(config)
    h, mask = sample()
    if not padded:
        mask = None
    whole, final = module(h, mask, None, True)
    torch.testing.assert_close(whole, module(h, mask), atol=1e-12, rtol=0)
    state, parts, t = None, [], 0
    for size in splits:
        t += size
        out, state = module(h[:, t - size : t], None if mask is None else mask[:, :t], state, True)
        parts.append(out)
        assert len(state) == module.streams
    got = torch.cat(parts, 1)
    real = torch.ones(3, 11, dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(got[real], whole[real], atol=1e-12, rtol=0)
    for a, b in zip(state, final, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("t", [1, 2, 40])
def test_state_is_the_last_tokens_and_nothing_more(t):
    h, _ = sample(t=t)
    _, (k, v, real) = built(resfx.ShortSWA(window=4))(h, None, None, True)
    assert k.shape == v.shape == (3, 4, 3, 4) and real.shape == (3, 3)
    assert sum(x.untyped_storage().nbytes() for x in (k, v)) == 3 * 2 * 3 * 16 * 8
    assert real.sum() == 3 * min(t, 3)
    lean = built(resfx.ShortSWA(window=4, heads=1, head_dim=6))
    assert sum(p.numel() for n, p in lean.named_parameters() if "norm" not in n) == 4 * 16 * 6
    _, (k, v, real) = lean(h, None, None, True)
    assert k.shape == v.shape == (3, 1, 3, 6) and real.shape == (3, 3)
    _, (kept,) = built(resfx.Canon())(h, None, None, True)
    assert kept.shape == (3, 3, 16) and kept.untyped_storage().nbytes() == 3 * 3 * 16 * 8


def conv_reference(module, h, mask, kernel, causal, activation):
    x, out = h * mask.unsqueeze(-1), torch.zeros_like(h)
    before = kernel - 1 if causal else kernel // 2
    for t in range(h.shape[1]):
        for s in range(kernel):
            if 0 <= t - before + s < h.shape[1]:
                out[:, t] += module.weight[:, s] * x[:, t - before + s]
    return h + activation(out if module.bias is None else out + module.bias)


@pytest.mark.parametrize("causal", [True, False])
def test_convolution_equals_its_equations(causal):
    for config, act in ((resfx.Canon(bias=True), lambda x: x), (resfx.ShortConv(), lambda x: x / (1 + (-x).exp()))):
        module = built(config, causal=causal)
        h, mask = sample()
        h.requires_grad_()
        got, want = module(h, mask), conv_reference(module, h, mask, 4, causal, act)
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
        weight = torch.cos(torch.arange(got.numel(), dtype=F64)).view_as(got)
        inputs = [h, *module.parameters()]
        for a, b in zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in (got, want)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_convolution_equals_torch():
    module = built(resfx.Canon())
    h, _ = sample()
    want = nn.functional.conv1d(
        nn.functional.pad(h.transpose(1, 2), (3, 0)), module.weight.unsqueeze(1), groups=16
    ).transpose(1, 2)
    torch.testing.assert_close(module(h), h + want, atol=1e-12, rtol=0)


def test_impulse_reaches_four_positions_of_its_channel():
    module = built(resfx.Canon())
    h = torch.zeros(1, 12, 16, dtype=F64)
    h[0, 5, 3] = 1
    touched = module(h)[0].abs() > 1e-9
    assert touched[5:9, 3].all() and touched.sum() == 4


def test_preserving_starts_are_the_identity():
    h, mask = sample()
    for config in (resfx.Canon(), resfx.Canon(bias=True), resfx.Canon(residual=False), resfx.ShortConv(),
                   resfx.ShortConv(residual=False, activation="none"), resfx.ShortSWA(placement="branch")):  # fmt: skip
        for causal in (True, False):
            module = config.build(place(causal=causal))
            real = mask.bool() if not getattr(config, "residual", True) else torch.ones_like(mask, dtype=torch.bool)
            assert torch.equal(module(h, mask)[real], h[real]), config
    assert not resfx.ShortSWA().build(place())(h, mask).any()


def test_heads_split_off_the_features():
    module = built(resfx.Canon())
    h, mask = sample()
    want = module(h, mask)
    module.layout = "bthd"
    assert torch.equal(module(h.unflatten(2, (4, 4)), mask), want.unflatten(2, (4, 4)))
    module.layout = "bhtd"
    got = module(h.unflatten(2, (4, 4)).transpose(1, 2), mask)
    assert torch.equal(got, want.unflatten(2, (4, 4)).transpose(1, 2))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: resfx.ShortSWA(window=0), "at least 1"), (lambda: resfx.ShortSWA(kind="ring"), "kind must be"),
        (lambda: resfx.ShortSWA(placement="after"), "placement must be"), (lambda: resfx.ShortSWA(heads=-1), "heads"),
        (lambda: resfx.ShortSWA(head_dim=-8), "head_dim must be 0"),
        (lambda: resfx.ShortSWA(head_dim=7, rope=True), r"must be even[\s\S]*head_dim=7"),
        (lambda: resfx.Canon(at="AE"), "letters of 'ABCD'"), (lambda: resfx.Canon(at=""), "letters of 'ABCD'"),
        (lambda: resfx.Canon(kernel=0), "at least 1"), (lambda: resfx.ShortConv(on="qq"), "letters of 'qkv'"),
        (lambda: resfx.ShortConv(residual=False), "not the identity"),
        (lambda: resfx.ShortConv(activation="gelu"), "activation must be"),
    ],
)  # fmt: skip
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refusals_name_the_reason():
    assert "does not split" in resfx.ShortSWA(heads=5).refuse(place())
    assert "rotated in pairs" in resfx.ShortSWA(heads=16, rope=True).refuse(place())
    assert resfx.ShortSWA(heads=8).refuse(place()) is None


@given(st.integers(1, 40), st.integers(0, 6), st.integers(0, 9), st.sampled_from([None, 1, 3, 4]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_an_option_is_an_error_a_refusal_or_a_mixer(width, heads, size, hosts, rope):
    """Which of the three is told by arithmetic; what is built has the inner width that the options say."""
    options = {"window": 3, "heads": heads, "head_dim": size, "rope": rope, "placement": "branch"}
    if rope and size % 2:
        with pytest.raises(ValueError, match="head_dim must be even"):
            resfx.ShortSWA(**options)
        return
    config, here = resfx.ShortSWA(**options), place(width, heads=hosts)
    count = heads or hosts or 1
    reason = config.refuse(here)
    if not size and width % count:
        assert f"a width of {width} does not split into {count} heads" == reason
    elif rope and not size and (width // count) % 2:
        assert "rotated in pairs" in reason
    else:
        assert reason is None
        module, inner = config.build(here), count * (size or width // count)
        assert [tuple(p.weight.shape) for p in (module.q, module.k, module.v, module.o)] == [
            (inner, width), (inner, width), (inner, width), (width, inner),
        ]  # fmt: skip
        h = torch.randn(2, 4, width, dtype=F64)
        out, (k, v, _) = module(h, None, None, True)
        assert torch.equal(out, h) and k.shape == v.shape == (2, count, 2, inner // count)


def test_configs_are_plain_data():
    for config in CONFIGS:
        data = config.to_dict()
        assert data.pop("method") == config.name and type(config)(**data) == config
        assert dataclasses.replace(config, start="published").start == "published"
