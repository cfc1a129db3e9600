"""Running block by block: equal blocks share one compiled function, activations are recomputed."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hosts import BY_NAME, HOSTS, VOCAB, Block, tokens
from hosts.made import randomise, rewritten
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd.graph import saved_tensors_hooks

import resfx
from resfx.errors import ResfxError
from resfx.methods.base import methods
from resfx.runtime.blocks import Plan

WIDTH = 16
# The compiler looks at every input's gradient and hides the warning, which an error filter finds nevertheless.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Decoder(nn.Module):
    """As many equal pre-norm blocks as asked for, with dropout."""

    def __init__(self, depth: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB)
        for block in self.blocks:
            block.drop.p = dropout

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _decoder(depth: int, mode: object, dropout: float = 0.2):
    torch.manual_seed(0)
    new = resfx.rewrite(Decoder(depth, dropout), mode, args=(tokens(2, 7),), check=False)
    randomise(new, 0.05)
    return new


def _step(model, inputs, seed: int = 3):
    """Output and gradients of one call; the same random numbers for every call."""
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(**inputs)
    output = output if isinstance(output, torch.Tensor) else output.logits
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return output.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _saved(model, inputs) -> int:
    """Bytes of activations that a call keeps for the backward pass."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model(**inputs)  # captures
    with saved_tensors_hooks(pack, lambda t: t):
        model(**inputs)
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in parameters)


def _close(a, b, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a[0], b[0], atol=tolerance, rtol=tolerance)
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], atol=tolerance, rtol=tolerance, msg=name)


def _compiled(model, backend: str = "aot_eager", **options):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return resfx.compile_blocks(copy.deepcopy(model), backend=counter, **options), counter


# -- the cut --------------------------------------------------------------------------------------------------------


def _regrouped(new, inputs):
    call = new._resfx.source.call((), inputs)
    variant, blocks = new._resfx.variant_of(new, call), new._resfx.blocks
    run = blocks._add(variant, Plan(False, (), None))
    return variant, run, blocks.regrouped[variant]


QUICK = ("gpt2", "t5", "mixtral", "vit", "nanogpt")


@pytest.mark.parametrize("host", [
    h if h.name in QUICK else pytest.param(h, marks=pytest.mark.matrix) for h in HOSTS
], ids=lambda h: h.name)  # fmt: skip
def test_segments_compute_what_the_flat_graph_does(host):
    _, new, inputs = rewritten(host.name)
    variant, run, regrouped = _regrouped(new, inputs)
    call = new._resfx.source.call((), inputs)
    with torch.no_grad():
        want = variant.run(new, *call.leaves, *variant.capture.constants)
        got = run(new, *call.leaves, *variant.capture.constants)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    blocks = {p.segment.block for p in regrouped.parts} - {""}
    assert len(blocks) == 2 * host.streams
    assert sum(len(p.segment.nodes) for p in regrouped.parts if p.segment.block) > 20


@pytest.mark.parametrize("mode", [
    m if m in ("ddl", "canon", "attnres", "mudd", "hyper_connections") else pytest.param(m, marks=pytest.mark.matrix)
    for m in methods()
])  # fmt: skip
def test_the_number_of_different_blocks_does_not_grow_with_depth(mode):
    counts = []
    for depth in (3, 5):
        new = _decoder(depth, mode)
        variant, run, regrouped = _regrouped(new, {"ids": tokens(2, 7)})
        outputs = []
        for function in (variant.run, run):
            torch.manual_seed(0)
            outputs.append(function(new, tokens(2, 7), *variant.capture.constants)[0])
        assert torch.equal(*outputs), "dropout draws the same numbers"
        inner = [p for p in regrouped.parts if p.segment.block]
        assert {p.segment.block for p in inner} == {f"blocks.{i}" for i in range(depth)}
        counts.append(len({p.function for p in inner}))
    assert counts[0] == counts[1] <= 4


# -- compiled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ddl", "short_swa", "hyper_connections", resfx.DepthRead(window=2)],
                         ids=["site", "sequence", "wide", "depth"])  # fmt: skip
def test_compiled_graphs_do_not_grow_with_depth(mode):
    graphs = []
    for depth in (4, 6):
        new = _decoder(depth, mode).eval()
        want = _step(new, {"ids": tokens(2, 7)})
        by_block, counter = _compiled(new, "aot_eager" if depth == 4 else "eager", fullgraph=True)
        _close(_step(by_block, {"ids": tokens(2, 7)}), want)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1] <= 8


@pytest.mark.parametrize(("mode", "functions"), [
    (resfx.HyperConnections(), 1), (resfx.DDL(value_channels=2), 1), (resfx.MHC(), 3)
], ids=["hc", "ddl", "mhc"])  # fmt: skip
def test_a_wide_state_enters_every_block_alike(mode, functions):
    """The first block too, though its state is a view elsewhere; the first and the last add of mHC mix no channels."""
    by_block, counter = _compiled(_decoder(4, mode).eval(), "eager", fullgraph=True)
    by_block(tokens(2, 7))
    assert counter.frame_count == functions + 3, "blocks, the state's two ends, and the norm and head behind them"


def test_reads_over_many_sources_share_the_chunks_they_are_cut_into():
    new = _decoder(11, "denseformer").eval()
    want = _step(new, {"ids": tokens(2, 7)})
    by_block, counter = _compiled(new, "eager")
    _close(_step(by_block, {"ids": tokens(2, 7)}), want)
    assert _chunked_reads(by_block) == 4, "reads of 9 to 12 sources"
    assert {size for _, size in by_block._resfx.blocks.chunks} == {8, 4, 2, 1}
    assert counter.frame_count == 1 + 1 + 4 + 3, "one block, the head, chunks; three that may hold the state itself"


@pytest.mark.parametrize(("mode", "dtype"), [
    (resfx.AttnRes(), torch.bfloat16), (resfx.AttnRes(start="published", recompute=True), torch.float32)
], ids=["preserve", "published, recomputed"])  # fmt: skip
def test_long_reads_in_chunks_agree_with_the_formula(mode, dtype):
    new = _decoder(6, mode).to(dtype).train()
    want = _step(new, {"ids": tokens(2, 7)})
    by_block, _ = _compiled(new, "eager")
    assert _chunked_reads(by_block) == 5, "sublayers 8 to 12 read 9 sources and more"
    _close(_step(by_block, {"ids": tokens(2, 7)}), want, 1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("mode", [resfx.DCA(k=None), resfx.VerticalAttention(), resfx.MUDD(prepost=True)],
                         ids=["dca", "vertical", "mudd"])  # fmt: skip
def test_sums_over_many_sources_are_compiled_in_chunks(mode):
    """The mixtures of DCA; the norms of the sources for the two others."""
    new = _decoder(11, mode).train()
    want = _step(new, {"ids": tokens(2, 7)})
    by_block, _ = _compiled(new, "eager")
    _close(_step(by_block, {"ids": tokens(2, 7)}), want, 1e-4)
    sizes: dict[str, set[int]] = {}
    for function, size in by_block._resfx.blocks.chunks:
        sizes.setdefault(function.__name__, set()).add(size)
    assert set(sizes) == ({"mixtures"} if mode.name == "dca" else {"rms_scales", "_add_chunk"})
    assert set.union(*sizes.values()) == {8, 4, 2, 1}


def _chunked_reads(new) -> int:
    graph = new._resfx.variants[0].capture.graph
    reads = [n for n in graph.nodes if n.op == "call_module" and n.args and isinstance(n.args[0], list)]
    return sum(len(n.args[0]) > 8 for n in reads)


def test_other_lengths_and_batches_recompile_each_block_once():
    new = _decoder(2, "ddl").eval()
    by_block, counter = _compiled(new)
    for number, (batch, length) in enumerate([(2, 7), (3, 9), (5, 6)]):
        inputs = {"ids": tokens(batch, length)}
        _close(_step(by_block, inputs), _step(new, inputs))
        if number == 1:
            dynamic = counter.frame_count
    assert counter.frame_count == dynamic


def test_training_and_evaluation_compiled():
    new = _decoder(2, "ddl")
    by_block, _ = _compiled(new)
    for train in (True, False, True):
        for model in (new, by_block):
            model.train(train)
        _close(_step(by_block, {"ids": tokens(2, 7)}), _step(new, {"ids": tokens(2, 7)}))


def test_generation_with_a_cache_compiled():
    new = copy.deepcopy(rewritten("llama", "short_swa")[1])
    randomise(new, 0.3)
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones(2, 6, dtype=torch.long),
               "eos_token_id": None}  # fmt: skip
    want = new.generate(tokens(2, 6), **options)
    by_block, _ = _compiled(new, "eager")
    assert torch.equal(by_block.generate(tokens(2, 6), **options), want)


def test_inductor_on_two_layers():
    new = _decoder(2, "ddl").eval()
    want = _step(new, {"ids": tokens(2, 7)})
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own imports
        _close(_step(resfx.compile_blocks(copy.deepcopy(new), dynamic=False), {"ids": tokens(2, 7)}), want)


class ConvNet(nn.Module):
    """Residual blocks with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        branch = lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Dropout(0.3))
        self.stages = nn.ModuleList(branch() for _ in range(3))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        for stage in self.stages:
            x = x + stage(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("how", ["compiled", "recomputed", "both"])
def test_running_statistics_are_written_once(how):
    torch.manual_seed(0)
    x = {"x": torch.randn(3, 6, 5, 5)}
    new = resfx.rewrite(ConvNet(), kwargs=x, check=False)
    randomise(new, 0.1)
    other, _ = _compiled(new) if how != "recomputed" else (copy.deepcopy(new), None)
    if how != "compiled":
        resfx.checkpoint_blocks(other)
    for _ in range(2):
        _close(_step(other, x), _step(new, x))
    for (name, a), (_, b) in zip(new.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert new.stages[0][0].num_batches_tracked == 2


# -- activations recomputed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ddl", "attnres", "short_swa", "hyper_connections"])
def test_recomputed_activations_keep_every_bit_and_less_memory(mode):
    new = _decoder(3, mode).train()
    inputs = {"ids": tokens(4, 12)}
    want, bytes_before = _step(new, inputs), _saved(new, inputs)
    resfx.checkpoint_blocks(new)
    got = _step(new, inputs)
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(got[1][n], g) for n, g in want[1].items())
    saved = _saved(new, inputs)
    resfx.checkpoint_blocks(new, every=2)
    assert saved < 0.6 * bytes_before
    assert saved < _saved(new, inputs) < bytes_before
    resfx.checkpoint_blocks(new, every=0)
    assert _saved(new, inputs) == bytes_before


@pytest.mark.parametrize(("name", "reentrant"), [("gpt2", False), ("gpt2", True), ("t5", False), ("vit", False)])
def test_the_switch_of_hugging_face_models(name, reentrant):
    new = copy.deepcopy(rewritten(name)[1]).train()
    randomise(new, 0.1)
    inputs = BY_NAME[name].inputs(2, 12)
    want, bytes_before = _step(new, inputs), _saved(new, inputs)
    new.activation_checkpointing_enable({"use_reentrant": reentrant})
    got = _step(new, inputs)
    assert torch.equal(got[0], want[0])
    tolerance = 1e-4 if reentrant else 0  # gradients are summed in another order
    for key, grad in want[1].items():
        torch.testing.assert_close(got[1][key], grad, atol=tolerance, rtol=tolerance)
    assert _saved(new, inputs) < 0.3 * bytes_before
    new.activation_checkpointing_disable()
    assert _saved(new, inputs) == bytes_before


def test_the_switch_may_name_every_second_layer_and_be_set_before_the_rewrite():
    model = BY_NAME["llama"].make().train()
    model.activation_checkpointing_enable(every_n_layers=2)
    new = resfx.rewrite(model, kwargs=BY_NAME["llama"].inputs(2, 12))
    new(input_ids=tokens(2, 12))
    assert {plan.recomputed for _, plan, _ in new._resfx.blocks.runners} == {("model.layers.0",)}
    output = new(input_ids=tokens(2, 12), use_cache=True)
    assert output.past_key_values is None, "as the host: no cache while activations are recomputed"
    new.eval()
    assert new(input_ids=tokens(2, 12), use_cache=True).past_key_values.get_seq_length() == 12


def test_recomputing_inside_a_graph_compiled_as_a_whole():
    new = _decoder(2, "ddl", dropout=0.0).train()
    inputs = {"ids": tokens(2, 7)}
    resfx.checkpoint_blocks(new)
    want = _step(new, inputs)
    torch._dynamo.reset()
    whole = torch.compile(new, backend="aot_eager", fullgraph=True)
    new.zero_grad()
    output = whole(**inputs)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    _close((output.detach(), {n: p.grad for n, p in new.named_parameters() if p.grad is not None}), want)


def test_recomputing_with_parameters_lent_for_the_call():
    new = _decoder(2, "ddl", dropout=0.0).train()
    lent = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in new.named_parameters()}
    results = []
    for every in (0, 1):
        resfx.checkpoint_blocks(new, every=every)
        values = {n: p.clone().requires_grad_() for n, p in lent.items()}
        output = torch.func.functional_call(new, values, (tokens(2, 7),))
        results.append(torch.autograd.grad(output.square().sum(), list(values.values())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_copies_and_moves_keep_how_blocks_run():
    new = resfx.checkpoint_blocks(_decoder(2, "ddl")).train()
    inputs = {"ids": tokens(2, 7)}
    twin = copy.deepcopy(new).to(torch.float64)
    twin(**inputs)
    assert len(twin._resfx.blocks.runners) == 1
    assert not new._resfx.blocks.runners


def test_what_is_not_rewritten_is_refused():
    with pytest.raises(ResfxError, match="not a rewritten module"):
        resfx.compile_blocks(nn.Linear(2, 2))
    with pytest.raises(ResfxError, match="not a rewritten module"):
        resfx.checkpoint_blocks(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="at least 0"):
        resfx.checkpoint_blocks(_decoder(1, "ddl"), every=-1)
