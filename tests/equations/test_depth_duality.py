"""The duality: reading depth is windowed attention on the transposed tensor; and the costs that follow from it."""

from __future__ import annotations

import collections

import pytest
import torch
from hosts import WIDTH, tokens
from hosts.made import randomise
from references import depth as ref
from torch.utils._python_dispatch import TorchDispatchMode

import resfx
from resfx.methods.depth.base import DepthPlace
from resfx.methods.depth.depth_read import AttentionRead
from resfx.ops.window.formula import windowed_attention, windowed_attention_row

IDX = tokens(2, 6)
WINDOWS = [1, 2, 4, None]


def place(level, sources, d):
    return DepthPlace(width=d, context_width=d, kind="attention", depth=level, dtype=torch.float64,
                      device=torch.device("cpu"), read=level, sources=sources, last=False, outputs=1)  # fmt: skip


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_read_at_every_depth_is_the_token_operator_on_the_transposed_tensor(window, heads):
    """Forward and gradients: ``DepthRead`` at each of the depths 0..6 against ``windowed_attention`` over layers.

    The reads are built as a model's are, each for its own number of states, and given the same weights.
    """
    batch, length, depth, d = 2, 3, 7, 8
    torch.manual_seed(0)
    config = resfx.DepthRead(window=window, heads=heads, norm=False, start="published")
    names = ["query.weight", "projection.key.weight", "projection.value.weight", "out.weight"]
    weights = {n: torch.randn(d, d, dtype=torch.float64, requires_grad=True) for n in names}
    states = torch.randn(batch, length, depth, d, dtype=torch.float64, requires_grad=True)

    rows = []
    for level in range(depth):
        chosen = [states[:, :, j] for (j,) in config.sources(level, False)]
        assert len(chosen) == min(window or depth, level + 1)
        read = config.build(place(level, len(chosen), d))
        mine = {n: weights[n] for n, _ in read.named_parameters()}
        rows.append(torch.func.functional_call(read, mine, (chosen, chosen[-1])) - chosen[-1])
    over_depth = torch.stack(rows, 2)

    split = lambda w: (states @ w.T).unflatten(-1, (heads, -1)).transpose(-2, -3)  # layers where tokens would be
    z = windowed_attention(*(split(weights[n]) for n in names[:3]), window)
    over_tokens = z.transpose(-2, -3).flatten(-2) @ weights["out.weight"].T

    torch.testing.assert_close(over_depth, over_tokens, rtol=1e-12, atol=1e-12)
    inputs = [states, *(weights[n] for n in (names if window != 1 else names[2:]))]
    cotangent = torch.randn_like(over_tokens)
    left, right = (torch.autograd.grad((y * cotangent).sum(), inputs) for y in (over_depth, over_tokens))
    for a, b in zip(left, right, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.every(2)
@pytest.mark.parametrize("window", WINDOWS)
def test_in_a_rewritten_model_all_reads_are_one_call_of_the_token_operator(window):
    """The states a model really has, stacked over depth: one windowed attention gives every block's read."""
    new = resfx.rewrite(ref.deep_host(), resfx.DepthRead(window=window, shared=True), args=(IDX,))
    randomise(new)
    seen = []
    reads = [m for m in new.modules() if isinstance(m, AttentionRead)]
    hooks = [m.register_forward_hook(lambda m, a, out: seen.append((m, *a, out))) for m in reads]
    new(IDX)
    for hook in hooks:
        hook.remove()
    assert len(seen) == ref.BLOCKS
    kv = torch.stack([sources[-1] for _, sources, _, _ in seen], -2)  # (batch, tokens, layers, 2 d or d)
    value = kv[..., -WIDTH:].unsqueeze(-3)
    key = kv[..., :WIDTH].unsqueeze(-3)
    prepared = lambda x: ref.rms(x, 1e-6)
    queries = [m.query(prepared(x)) if m.query is not None else torch.zeros_like(x) for m, _, x, _ in seen]
    z = windowed_attention(torch.stack(queries, -2).unsqueeze(-3), key, value, window).squeeze(-3)
    for level, (m, _, x, out) in enumerate(seen):
        torch.testing.assert_close(out, x + m.out(z[..., level, :]), rtol=1e-12, atol=1e-12)


def test_the_row_form_is_the_last_row():
    q, *kv = (torch.randn(2, 3, 5, 4, dtype=torch.bfloat16) for _ in range(3))
    k, v = kv
    want = windowed_attention(q[..., -1:, :], k, v, None).squeeze(-2)
    got = windowed_attention_row(q[..., -1, :], list(k.unbind(-2)), list(v.unbind(-2)))
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    assert got.dtype == torch.bfloat16


class Products(TorchDispatchMode):
    """Counts multiplications: elements of products, and inner products of matrix products."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mul.Tensor:
            self.count["elementwise"] += out.numel()
        elif func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.count["matrix"] += out.numel() * args[-1].shape[-2]
        return out


def products(module, idx):
    with torch.no_grad(), Products() as counter:
        module(idx)
    return counter.count


@pytest.mark.every(2)
@pytest.mark.parametrize(("window", "blocks"), [(2, 5), (3, 3), (None, 3), (None, 6)])
def test_multiplications_added_are_what_the_paper_counts(window, blocks):
    """Scores and values of a block: 2 T K_l d, K_l = min(K, l + 1), and a scale per score. That is O(T K d) per block
    and T L (L + 1) d, O(T L^2 d), in all at full depth; projections are counted apart, as the paper does."""
    model = ref.deep_host(blocks=blocks)
    new = resfx.rewrite(model, resfx.DepthRead(window=window, shared=True, norm=False), args=(IDX,))
    added = products(new, IDX) - products(model, IDX)
    rows = IDX.numel()
    sizes = [min(window or blocks, level + 1) for level in range(blocks)]
    read = [n for n in sizes if n > 1]
    assert added["elementwise"] == rows * sum(2 * n * WIDTH + n for n in read)
    if window is None:
        assert added["elementwise"] == rows * ((blocks * (blocks + 1) - 2) * WIDTH + sum(read))  # block 0 has no scores
    projections = 2 * blocks + len(read) + blocks  # key and value of each state once; queries; outputs
    assert added["matrix"] == rows * WIDTH**2 * projections


def test_depthwise_average_multiplies_once_per_source_and_feature():
    model = ref.deep_host()
    new = resfx.rewrite(model, resfx.DenseFormer(), args=(IDX,))
    added = products(new, IDX) - products(model, IDX)
    assert added["elementwise"] == IDX.numel() * WIDTH * sum(i + 1 for i in range(1, ref.BLOCKS + 1))
    assert not added["matrix"]


@pytest.mark.every(6)
@pytest.mark.parametrize(("method", "count"), [
    (resfx.AttnRes(), lambda L, d: 2 * d * 2 * L),
    (resfx.AttnRes(block=2), lambda L, d: 2 * d * 2 * L),
    (resfx.DeltaAttnRes(start="published"), lambda L, d: 2 * d * (2 * L - 1)),
    (resfx.DeltaAttnRes(start="published", null=True), lambda L, d: 3 * d * (2 * L - 1)),
    (resfx.DenseFormer(), lambda L, d: L * (L + 3) // 2),
    (resfx.DenseFormer(dilation=2), lambda L, d: sum((i + 2) // 2 for i in range(1, L + 1))),
    (resfx.DenseFormer(period=3), lambda L, d: sum(i + 1 for i in range(3, L + 1, 3))),
    (resfx.ELC(), lambda L, d: sum(range(2, L + 1))),
    (resfx.ELC(variant="weighted"), lambda L, d: sum(range(2, L + 2))),
    (resfx.ELC(variant="base"), lambda L, d: sum(range(2, L + 1)) + L),
    (resfx.ELC(variant="base", start="published"), lambda L, d: sum(range(2, L + 1))),
    (resfx.MUDD(), lambda L, d: sum(d * 4 * n + 16 * n * n + 4 * n for n in range(2, L + 1))
        + d * (L + 1) + (L + 1) ** 2 + L + 1),
    (resfx.MUDD(streams="rv", hidden=5, prepost=True),
        lambda L, d: sum(d * 5 + 5 * 2 * n + 2 * n + 2 * d for n in range(2, L + 1)) + (d + L + 1) * 5 + L + 1 + 2 * d),
    (resfx.DCA(), lambda L, d: sum(3 * (d * t + d) for t in range(1, L + 1)) + d * (L + 1) + d),
    (resfx.DCA(k=1), lambda L, d: sum(3 * (d * min(t, 3) + d) for t in range(1, L + 1)) + d * 3 + d),
    (resfx.DepthRead(dim=8), lambda L, d: 4 * d * 8 * L - 2 * d * 8),  # the first read has no query and key
    (resfx.DepthRead(dim=8, shared=True), lambda L, d: 2 * d * 8 * L - d * 8 + 2 * d * 8),
    (resfx.VerticalAttention(start="published"), lambda L, d: sum(range(2, L + 1))),
    (resfx.VerticalAttention(start="published", routing="content"), lambda L, d: d * (L - 1)),
])  # fmt: skip
def test_parameters_are_as_many_as_the_papers_say(method, count):
    new = resfx.rewrite(ref.deep_host(), method, args=(IDX,), check=False)
    assert sum(p.numel() for p in new.new_parameters().values()) == count(ref.BLOCKS, WIDTH)
