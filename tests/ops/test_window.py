"""The windowed-attention operator against a dense band mask, a float64 rendering and its limits."""

import pytest
import torch
from torch.nn import functional as F

from resfx.ops.window.formula import windowed_attention, windowed_attention_reference, windowed_attention_row

FORMS = [(c, k) for c in (True, False) for k in (True, False)]


def qkv(t, heads=4, heads_k=4, d=8, dv=6, batch=(2,), dtype=torch.float64, seed=0, s=None):
    g = torch.Generator().manual_seed(seed)
    make = lambda h, n, w: torch.randn(*batch, h, n, w, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return make(heads, t, d), make(heads_k, s or t, d), make(heads_k, s or t, dv)


def by_hand(q, k, v, window, causal, chunk, mask, scale):
    """One query at a time, with Python loops over positions."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    size, length, groups = q.shape[-2], k.shape[-2], q.shape[-3] // k.shape[-3]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(size):
                i = t + length - size
                if chunk:
                    reads = [j for j in range(length) if j // window == i // window and (j <= i or not causal)]
                elif causal:
                    reads = [j for j in range(length) if i - window < j <= i]
                else:
                    reads = [j for j in range(length) if i - window // 2 <= j <= i + (window - 1) // 2]
                reads = [j for j in reads if mask is None or mask[b, j]]
                if reads:
                    weights = torch.softmax(scale * (k[b, h // groups, reads] @ q[b, h, t]), 0)
                    out[b, h, t] = weights @ v[b, h // groups, reads]
    return out


@pytest.mark.parametrize("causal, chunk", FORMS)
@pytest.mark.parametrize("t, window", [(1, 3), (5, 1), (7, 3), (16, 4), (40, 5), (37, 20), (9, 30)])
def test_equals_the_definition(causal, chunk, t, window):
    q, k, v = qkv(t, heads=4, heads_k=2)
    mask = torch.ones(2, t, dtype=torch.bool)
    mask[1, : t // 2] = False
    for m in (None, mask):
        want = by_hand(q, k, v, window, causal, chunk, m, 0.3)
        for form in (windowed_attention, windowed_attention_reference):
            got = form(q, k, v, window, causal=causal, chunk=chunk, mask=m, scale=0.3)
            torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal, chunk", FORMS)
def test_gradients_equal_the_dense_ones(causal, chunk):
    q, k, v = qkv(21)
    mask = torch.arange(21).expand(2, 21) >= torch.tensor([[0], [4]])
    got, want = (
        torch.autograd.grad(f(q, k, v, 5, causal=causal, chunk=chunk, mask=mask).square().sum(), (q, k, v))
        for f in (windowed_attention, windowed_attention_reference)
    )
    for a, b in zip(got, want, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_window_beyond_the_length_is_full_causal_attention():
    q, k, v = qkv(12, dv=8)
    full = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for window in (12, 50, None):
        torch.testing.assert_close(windowed_attention(q, k, v, window), full, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        windowed_attention(q, k, v, None, causal=False), F.scaled_dot_product_attention(q, k, v), atol=1e-12, rtol=0
    )


def test_window_of_one_returns_the_values():
    q, k, v = qkv(9)
    assert torch.equal(windowed_attention(q, k, v, 1), v)


@pytest.mark.parametrize("window", [3, 16, 20])
def test_last_queries_over_more_keys(window):
    q, k, v = qkv(4, s=23)
    torch.testing.assert_close(
        windowed_attention(q, k, v, window), windowed_attention_reference(q, k, v, window), atol=1e-12, rtol=0
    )
    whole = windowed_attention_reference(F.pad(q, (0, 0, 19, 0)), k, v, window)[..., -4:, :]
    torch.testing.assert_close(windowed_attention(q, k, v, window), whole, atol=1e-12, rtol=0)


def test_leading_axes_are_free():
    q, k, v = qkv(11, batch=(2, 3))
    got = windowed_attention(q, k, v, 4)
    torch.testing.assert_close(got[1, 2], windowed_attention(q[1, 2], k[1, 2], v[1, 2], 4), atol=1e-12, rtol=0)


def test_layers_as_positions():
    """A depth-wise read with window K is this operator on the transposed tensor (arXiv 2603.16039, 2.2)."""
    states = torch.randn(2, 5, 7, 8, dtype=torch.float64)  # batch, tokens, layers, features
    q, k = torch.randn(2, 8, 8, dtype=torch.float64)
    read = windowed_attention((states @ q).unsqueeze(-3), (states @ k).unsqueeze(-3), states.unsqueeze(-3), 3).squeeze(
        -3
    )
    for layer in range(7):
        last = states[:, :, max(0, layer - 2) : layer + 1]
        scores = torch.einsum("btd,btkd->btk", states[:, :, layer] @ q, last @ k) / 8**0.5
        want = torch.einsum("btk,btkd->btd", scores.softmax(-1), last)
        torch.testing.assert_close(read[:, :, layer], want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_types_stay_near_float64(dtype, tolerance):
    q, k, v = qkv(33, dtype=dtype)
    got = windowed_attention(q, k, v, 6)
    assert got.dtype is dtype
    want = windowed_attention_reference(q.double(), k.double(), v.double(), 6)
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("causal", [True, False])
def test_compiled_form(causal):
    q, k, v = qkv(19)
    mask = torch.arange(19).expand(2, 19) >= torch.tensor([[0], [4]])
    run = torch.compile(windowed_attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        run(q, k, v, 5, causal=causal, mask=mask),
        windowed_attention_reference(q, k, v, 5, causal=causal, mask=mask), atol=1e-12, rtol=0,
    )  # fmt: skip


def sizes_in_graph(t, **options):
    class Window(torch.nn.Module):
        def forward(self, q, k, v):
            return windowed_attention(q, k, v, 4, **options)

    q, k, v = (x.detach() for x in qkv(t, heads=1, heads_k=1, batch=(1,)))
    graph = torch.export.export(Window(), (q, k, v)).graph
    return [n.meta["val"].numel() for n in graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"chunk": True}])
def test_nothing_is_quadratic_in_the_length(options):
    small, large = max(sizes_in_graph(256, **options)), max(sizes_in_graph(1024, **options))
    assert large <= 4 * small + 64


def test_eager_memory_is_linear(monkeypatch):
    """The eager form too: the largest score tensor grows with T, not with its square."""
    import resfx.ops.window.formula as window

    seen = []
    softmax = window._softmax
    monkeypatch.setattr(window, "_softmax", lambda s, a, c: seen.append(s.numel()) or softmax(s, a, c))
    for t in (512, 2048):
        q, k, v = qkv(t, heads=1, heads_k=1, batch=(1,))
        windowed_attention(q, k, v, 4)
    assert seen[1] == 4 * seen[0]


@pytest.mark.parametrize("causal, chunk", FORMS)
def test_a_window_beyond_the_sequence_costs_no_more_than_one_as_long(causal, chunk, monkeypatch):
    import resfx.ops.window.formula as window

    seen = []
    softmax = window._softmax
    monkeypatch.setattr(window, "_softmax", lambda s, a, c: seen.append(s.numel()) or softmax(s, a, c))
    q, k, v = qkv(9, batch=(1, 2))  # leading axes that no small kernel takes
    got = [windowed_attention(q, k, v, w, causal=causal, chunk=chunk) for w in (18, 1000)]
    assert seen[0] == seen[1]
    for w, out in zip((18, 1000), got, strict=True):
        want = windowed_attention_reference(q, k, v, w, causal=causal, chunk=chunk)
        torch.testing.assert_close(out, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal, chunk", FORMS)
@pytest.mark.parametrize("batch", [(2,), (1, 2)])
def test_no_queries(causal, chunk, batch):
    q, (k, v) = qkv(0, batch=batch)[0], qkv(0 if chunk else 5, batch=batch)[1:]
    out = windowed_attention(q, k, v, 3, causal=causal, chunk=chunk)
    assert out.shape == (*batch, 4, 0, 6)
    out.sum().backward()


@pytest.mark.parametrize(
    "change, message", [({"window": 0}, "at least 1"), ({"heads_k": 3}, "cannot share"), ({"s": 9}, "as many keys")]
)
def test_bad_input(change, message):
    q, k, v = qkv(5, heads_k=change.get("heads_k", 4), s=change.get("s"))
    with pytest.raises(ValueError, match=message):
        windowed_attention(q, k, v, change.get("window", 3), chunk="s" in change)


@pytest.mark.parametrize("form", [windowed_attention, windowed_attention_reference])
@pytest.mark.parametrize("window", [3, None])
def test_operands_that_do_not_fit_each_other(form, window):
    q, k, v = qkv(5)
    for operands, message in (
        ((q, k[..., :3], v), "features do not fit"), ((q, k[..., :3, :], v[..., :3, :]), "fewer than 5 queries"),
        ((q, k, v[..., :4, :]), "differ"), ((q, k, v[:, :2]), "differ"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            form(*operands, window)
    with pytest.raises(ValueError, match="scale of 0"):
        form(q, k, v, window, scale=0.0)
    with pytest.raises(ValueError, match="scale of 0"):
        windowed_attention_row(q[..., 0, :], [k[..., 0, :]], [v[..., 0, :]], scale=0.0)
