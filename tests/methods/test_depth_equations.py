"""The depth methods' oracles: what must hold of them whatever a reference says. Their equations: test_depth_paper."""

from __future__ import annotations

import functools

import pytest
import torch
from hosts import tokens
from hosts.made import randomise
from references import depth as ref
from torch.utils._python_dispatch import TorchDispatchMode

import resfx
from resfx.methods.depth.attn_res import AttnRes
from resfx.methods.depth.base import in_blocks
from resfx.methods.depth.dca import DCA, mixtures
from resfx.methods.depth.delta_attn_res import DeltaAttnRes
from resfx.methods.depth.denseformer import DenseFormer
from resfx.methods.depth.depth_read import DepthRead
from resfx.methods.depth.elc import ELC
from resfx.methods.depth.mudd import MUDD
from resfx.methods.depth.vertical import VerticalAttention
from resfx.ops import chunks
from resfx.ops.scores import relative_softmax

IDX = tokens(2, 6)


def made(method, start, spread=0.3):
    model = ref.deep_host()
    torch.manual_seed(5)
    new = resfx.rewrite(model, method(start), args=(IDX,), check=False)
    randomise(new, spread)
    return model, new


@pytest.mark.every(2)
@pytest.mark.parametrize(("cls", "options"), [(AttnRes, {}), (AttnRes, {"block": 3}), (DenseFormer, {}), (DCA, {}),
                                              (DCA, {"k": 1}), (MUDD, {}), (DeltaAttnRes, {})])  # fmt: skip
def test_published_starts_that_keep_the_function_do(cls, options):
    """To rounding, or to the epsilon of the host's norms where only they undo a factor."""
    model = ref.deep_host()
    new = resfx.rewrite(model, cls(start="published", **options), args=(IDX,), check=False)
    torch.testing.assert_close(new(IDX), model(IDX), rtol=2e-3, atol=2e-3)


def test_relative_softmax_of_equal_logits_is_one_for_every_count():
    for dtype in (torch.float32, torch.float64):
        for n in range(1, 200):
            for level in (0.0, -3.7, 11.1):
                assert torch.equal(
                    relative_softmax(torch.full((2, n), level, dtype=dtype)), torch.ones(2, n, dtype=dtype)
                )


def test_blocks_partition_the_outputs():
    for read in range(1, 30):
        for size in (1, 2, 3, 8, 40):
            groups = in_blocks(read, size)
            assert [j for g in groups for j in g] == list(range(read + 1))
            assert all(len(g) == size for g in groups[1:-1])
            assert [g for g in in_blocks(read, size, partial=False)[1:] if len(g) != size] == []
    assert in_blocks(9, 1) == [(j,) for j in range(10)]
    assert in_blocks(9, 100) == [(0,), tuple(range(1, 10))]


def test_attention_weights_do_not_see_the_size_of_a_source():
    config = AttnRes(start="published", eps=1e-30)
    read = config.build(_place(3)).double()
    randomise_module(read)
    sources = [torch.randn(2, 5, 8, dtype=torch.float64) for _ in range(3)]
    one = read(sources, sources[0])
    other = read([sources[0], 7 * sources[1], sources[2]], sources[0])
    weight = (other - one) / (6 * sources[1])  # only the value grew: its weight is the same for every feature
    torch.testing.assert_close(weight, weight[..., :1].expand_as(weight))
    assert bool((weight > 0).all() and (weight < 1).all())


def test_dca_gates_are_not_negative_and_the_middle_is_a_sum():
    config = DCA(start="published", k=1)
    assert config.sources(5, False) == [(0,), (1, 2, 3, 4), (5,)]
    assert DCA(k=9).sources(5, False) == DCA().sources(5, False)
    read = config.build(_place(3, outputs=3))
    randomise_module(read)
    sources = [torch.rand(2, 4, 8) for _ in range(3)]
    for mixed in read(sources, sources[0]):
        assert bool((mixed >= 0).all()), "non-negative weights on non-negative sources"


def test_dca_as_printed_learns_away_from_zero_alone():
    """relu'(0) = 0: with w = 0 the printed form is dead for ever, so it is refused there and told what to give."""
    sources, b = [torch.randn(2, 4, 8) for _ in range(3)], torch.ones(1, 3, 8)
    for live in (False, True):
        w = torch.zeros(1, 8, requires_grad=True)
        mixtures(sources, b, w, live, False)[0].square().sum().backward()
        assert bool(w.grad.abs().max() > 0) == live
    new = resfx.rewrite(ref.deep_host(), DCA(form="printed", start="published", w_std=0.1), args=(IDX,))
    new(IDX).square().sum().backward()
    gates = [p for n, p in new.new_parameters().items() if n.endswith(".w")]
    assert len(gates) == ref.BLOCKS + 1 and all(p.grad.abs().max() > 0 for p in gates)


def test_dca_static_part_alone_and_constant_over_features_is_one_number_per_source():
    read = DCA(start="published").build(_place(3)).double()
    with torch.no_grad():
        read.b.copy_(torch.tensor([0.5, 2.0, 1.0]).view(1, 3, 1).expand_as(read.b))
    g = [torch.randn(2, 4, 8, dtype=torch.float64) for _ in range(3)]
    torch.testing.assert_close(read(g, g[0]), 0.5 * g[0] + 2 * g[1] + g[2])


def test_mudd_without_its_dynamic_part_is_denseformer():
    model = ref.deep_host()
    dense = resfx.rewrite(model, DenseFormer(), args=(IDX,))
    mudd = resfx.rewrite(model, MUDD(), args=(IDX,))
    randomise(dense)
    for name, parameter in dense.new_parameters().items():
        twin = mudd.get_submodule(name.replace("denseformer", "mudd").rsplit(".", 1)[0])
        twin.static.data.copy_(parameter.data.expand_as(twin.static))
    torch.testing.assert_close(mudd(IDX), dense(IDX), rtol=1e-10, atol=1e-10)


def test_mudd_weights_belong_to_their_token():
    read = MUDD(start="published").build(_place(2, outputs=4)).double()
    randomise_module(read)
    sources = [torch.randn(1, 5, 8, dtype=torch.float64) for _ in range(2)]
    other = [s.clone() for s in sources]
    other[1][:, 3] += 1
    for a, b in zip(read(sources, sources[-1]), read(other, other[-1]), strict=True):
        changed = (a - b).abs().amax((0, 2)) > 0
        assert changed.tolist() == [False, False, False, True, False]


def test_denseformer_counts_and_sources():
    config = DenseFormer(dilation=3)
    for i in range(1, 13):
        assert len(config.sources(i, False)) == (i + 3) // 3
        assert {j for (j,) in config.sources(i, False)} == {j for j in range(i + 1) if j % 3 == i % 3}
    new = resfx.rewrite(ref.deep_host(), DenseFormer(), args=(IDX,))
    assert sum(p.numel() for p in new.new_parameters().values()) == ref.BLOCKS * (ref.BLOCKS + 3) // 2
    with pytest.raises(resfx.errors.NoSitesError, match="no place in this stream"):
        resfx.rewrite(ref.deep_host(), DenseFormer(period=ref.BLOCKS + 1), args=(IDX,))


def test_elc_does_not_see_a_constant_on_its_logits():
    _, new = made(lambda s: ELC(start=s, variant="weighted"), "preserve")
    before = new(IDX)
    with torch.no_grad():
        for parameter in new.new_parameters().values():
            parameter.add_(3.0)
    torch.testing.assert_close(new(IDX), before)


def test_delta_sources_add_up_to_the_stream():
    """True deltas: a uniform full read is x / n, with an unfinished block too (an alternating sum would not be)."""
    for options in ({}, {"block": 3}):
        model = ref.deep_host()
        new = resfx.rewrite(model, DeltaAttnRes(start="published", **options), args=(IDX,), check=False)
        seen = []
        look = lambda m, a, out, seen=seen: seen.append((a, out))
        reads = [m for n, m in new.named_modules() if n.rsplit(".", 1)[-1].startswith("read")]
        hooks = [m.register_forward_hook(look) for m in reads]
        new(IDX)
        for hook in hooks:
            hook.remove()
        assert len(seen) == 2 * ref.BLOCKS - 1
        for (sources, x), out in seen:
            torch.testing.assert_close(sum(sources), x)
            torch.testing.assert_close(out, x * (1 + 1 / len(sources)))


@pytest.mark.parametrize("method", [AttnRes(), DeltaAttnRes(), DenseFormer(), ELC(), DCA(), MUDD(), VerticalAttention(),
                                    DepthRead()], ids=lambda m: m.name)  # fmt: skip
def test_reads_commute_with_permutations_of_tokens(method):
    read = method.build(_place(3, outputs=len(method.targets(False)))).double()
    randomise_module(read)
    sources = [torch.randn(2, 6, 8, dtype=torch.float64) for _ in range(3)]
    order = torch.randperm(6)
    as_tuple = lambda y: y if isinstance(y, tuple) else (y,)
    straight = as_tuple(read(sources, sources[-1]))
    permuted = as_tuple(read([s[:, order] for s in sources], sources[-1][:, order]))
    for a, b in zip(straight, permuted, strict=True):
        torch.testing.assert_close(a[:, order], b)


class Widest(TorchDispatchMode):
    """The largest tensor that an operator made, in elements."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)]
        self.elements = max([self.elements, *(t.numel() for t in made)])
        return out


READS = [
    AttnRes, DeltaAttnRes, functools.partial(DeltaAttnRes, null=True), DenseFormer, ELC,
    functools.partial(ELC, variant="normalized"), functools.partial(ELC, variant="base"), DCA, MUDD,
    functools.partial(MUDD, prepost=True), VerticalAttention, functools.partial(VerticalAttention, routing="content"),
    DepthRead, functools.partial(DepthRead, heads=4),
]  # fmt: skip


@pytest.mark.parametrize("start", ["preserve", "published"])
@pytest.mark.parametrize(
    "make", READS, ids=lambda m: "-".join([m().name, *map(str, getattr(m, "keywords", {}).values())])
)
def test_a_read_never_stacks_its_sources_and_all_of_it_learns_in_two_steps(make, start, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(chunks, "FEW", 0)  # what fits a cache may be stacked
    method, rows, width = make(start=start), 12, 64
    read = method.build(_place(rows, outputs=len(method.targets(False)), width=width)).double()
    sources = [torch.randn(2, 40, width, dtype=torch.float64) for _ in range(rows)]
    reached = set()
    for _ in range(2):
        with Widest() as widest:
            out = read(sources, sources[-1])
        assert widest.elements <= 2 * sources[0].numel(), "a tensor of several sources"
        outs = out if isinstance(out, tuple) else (out,)
        sum((y * torch.randn_like(y)).sum() for y in outs).backward()
        with torch.no_grad():
            for name, parameter in read.named_parameters():
                reached |= {name} if parameter.grad.abs().max() > 0 else set()
                parameter -= 1e-2 * parameter.grad
                parameter.grad = None
    assert reached == dict(read.named_parameters()).keys()


@pytest.mark.parametrize("bad", [
    lambda: DenseFormer(dilation=0), lambda: DenseFormer(period=-1), lambda: AttnRes(block=0), lambda: AttnRes(eps=0),
    lambda: DCA(form="dead"), lambda: DCA(k=0), lambda: DCA(w_std=-1), lambda: DCA(form="printed"),
    lambda: DCA(form="printed", w_std=0.1), lambda: DCA(form="printed", start="published"), lambda: MUDD(streams="x"),
    lambda: MUDD(streams="qq"), lambda: MUDD(streams=""),
    lambda: MUDD(window=0), lambda: MUDD(window=2, dilation=2), lambda: ELC(variant="one-hot"),
    lambda: DepthRead(window=0), lambda: DepthRead(at="output"), lambda: DepthRead(dim=6, heads=4),
    lambda: DeltaAttnRes(query="one"), lambda: VerticalAttention(routing="dynamic"),
])  # fmt: skip
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=r"must|divide|w_std above 0"):
        bad()


@pytest.mark.parametrize("skip", [(0, ref.BLOCKS), (0, 9), (5, 7)])
def test_a_skip_past_the_last_block_is_refused(skip):
    model = resfx.rewrite(ref.deep_host(), resfx.Lambdas(skips=((0, 1),)), args=(IDX,), check=False)
    assert model.report.changed
    with pytest.raises(resfx.errors.OptionError, match=f"skip into block {skip[1]} needs more than the"):
        resfx.rewrite(ref.deep_host(), resfx.Lambdas(skips=((0, 1), skip)), args=(IDX,), check=False)


def test_what_elc_cuts_has_the_type_of_the_stream():
    read = ELC(variant="base").build(_place(3, outputs=2))
    sources = [torch.randn(2, 8).bfloat16() for _ in range(3)]
    assert all(y.dtype is torch.bfloat16 for y in read(sources, sources[-1]))


def _place(sources, outputs=1, width=8):
    from resfx.methods.depth.base import DepthPlace

    return DepthPlace(
        width=width, context_width=width, kind="attention", depth=0, dtype=torch.float32, device=torch.device("cpu"),
        read=sources - 1, sources=sources, last=False, outputs=outputs, sublayers=2,
    )  # fmt: skip


def randomise_module(module):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))
