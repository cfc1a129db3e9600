"""Block AttnRes in two phases: the one-shot read, each finished block read once, one code for all blocks."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from hosts import BY_NAME, VOCAB, Block, tokens
from hosts.made import flat_graph, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import resfx
from resfx.ops.attention_read.formula import attention_read_formula
from resfx.ops.attention_read.two_phase import inter_block, intra_block

EPS = 1e-6
IDS = tokens(2, 7)
# The compiler looks at every input's gradient and hides the warning, which an error filter finds nevertheless.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Decoder(nn.Module):
    """Equal pre-norm blocks of two sublayers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCAB, 16), nn.LayerNorm(16)
        self.blocks = nn.ModuleList(Block(16, 2) for _ in range(depth))
        for block in self.blocks:
            block.drop.p = 0.0

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_two_phases_are_one_shot(finished, reads, with_partial, relative, seed):
    generator = torch.Generator().manual_seed(seed)
    random = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).requires_grad_()
    sources, queries = [random(2, 3, 8) for _ in range(finished)], [random(8) for _ in range(reads)]
    partials, base, grad = [random(2, 3, 8) for _ in range(reads)], random(2, 3, 8), random(reads, 2, 3, 8).detach()
    base = base if relative else None
    ahead = inter_block(sources, queries, EPS, relative)
    got, want = [], []
    for given_, query, partial in zip(ahead, queries, partials, strict=True):
        rest = [partial] if with_partial else []
        got.append(intra_block(given_, partial if with_partial else None, query, base, EPS))
        want.append(attention_read_formula([*sources, *rest], query, base, None, EPS, relative))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    leaves = [*sources, *queries, *(partials if with_partial else []), *([] if base is None else [base])]
    grads = [torch.autograd.grad(torch.stack(x), leaves, grad, materialize_grads=True) for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(st.integers(1, 9), st.booleans(), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_zero_query_corrects_nothing(dtype, finished, with_partial, seed):
    generator = torch.Generator().manual_seed(seed)
    sources = [10 * torch.randn(3, 8, generator=generator).to(dtype) for _ in range(finished + 2)]
    query = torch.zeros(8, dtype=dtype)
    (ahead,) = inter_block(sources[:finished], [query], EPS, True)
    base = sources[-1]
    assert torch.equal(intra_block(ahead, sources[-2] if with_partial else None, query, base, EPS), base)


def _pair(host: str, **options):
    """One-phase and two-phase rewrites of one model with the same new parameters."""
    torch.manual_seed(0)
    model, inputs = BY_NAME[host].make(), BY_NAME[host].inputs(2, 7)
    configs = [resfx.AttnRes(block=2, two_phase=two) for two in (False, True)]
    pair = [resfx.rewrite(model, config, kwargs=inputs, **options) for config in configs]
    for new in pair:
        randomise(new, 0.5)
    return *pair, inputs


def test_both_phases_run_in_float32_under_autocast():
    sources, queries, partial = torch.randn(3, 2, 8).unbind(), torch.randn(2, 8).unbind(), torch.randn(2, 8)
    read = lambda: [intra_block(a, partial, q, partial, EPS)
                    for a, q in zip(inter_block(sources, queries, EPS, True), queries, strict=True)]  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        got = read()
    assert all(map(torch.equal, got, read()))


@pytest.mark.matrix
def test_the_parameters_are_those_of_the_one_phase_form():
    one, two, inputs = _pair("llama")
    assert one.new_parameters().keys() == two.new_parameters().keys()
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(**inputs).logits, two(**inputs).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.matrix
def test_reads_of_chosen_blocks_only():
    one, two, inputs = _pair("llama", include="model.layers.1")
    torch.testing.assert_close(one(**inputs).logits, two(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_each_finished_block_is_read_once_for_all_reads():
    new = resfx.rewrite(Decoder(6), resfx.AttnRes(block=4, two_phase=True), args=(IDS,), check=False)
    graph = flat_graph(new, IDS)
    calls = [n for n in graph.nodes if n.op == "call_module" and "resfx" in n.target]
    ahead = [n for n in calls if n.target.rpartition(".")[2].startswith("ahead")]
    reads = [n for n in calls if n not in ahead]
    assert [len(n.args[0]) for n in ahead] == [1, 2, 3, 4], "the embedding, then a block more each time"
    assert [len(n.args[1]) for n in ahead] == [3, 4, 4, 1], "reads that share them: 11 before sublayers, one at the end"
    assert [len(n.args[0]) for n in reads] == [1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0]
    assert all(n.args[2].target is operator.getitem for n in reads)


def _graphs(depth: int) -> int:
    """How many graphs a forward pass block by block compiles."""
    new = resfx.rewrite(Decoder(depth), resfx.AttnRes(block=4, two_phase=True), args=(IDS,), check=False)
    randomise(new)
    want = new(IDS)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    torch.testing.assert_close(resfx.compile_blocks(copy.deepcopy(new), backend=counter)(IDS), want)
    return counter.frame_count


@pytest.mark.matrix
def test_a_deeper_model_compiles_no_more_blocks():
    counts = [_graphs(depth) for depth in (8, 10, 12)]
    assert counts[0] == counts[1] == counts[2] <= 12, "the reads ahead stand outside the blocks"


@pytest.mark.matrix
@pytest.mark.parametrize(("backend", "start", "recompute"), [
    ("aot_eager", "preserve", True),
    pytest.param("aot_eager", "published", False, marks=pytest.mark.matrix),
    pytest.param("inductor", "preserve", False, marks=pytest.mark.matrix),
    pytest.param("inductor", "published", True, marks=pytest.mark.matrix),
])  # fmt: skip
def test_compiled_it_computes_the_same(backend, start, recompute):
    torch.manual_seed(0)
    config = resfx.AttnRes(block=4, two_phase=True, start=start, recompute=recompute)
    new = resfx.rewrite(Decoder(3), config, args=(IDS,), check=False)
    randomise(new)
    grad = torch.randn(2, 7, 16)
    results = []
    torch._dynamo.reset()
    whole, blocks = torch.compile(new, backend=backend, fullgraph=True), resfx.compile_blocks(
        copy.deepcopy(new), backend=backend)  # fmt: skip
    for call, module in ((new, new), (whole, new), (blocks, blocks)):
        module.zero_grad()
        output = call(IDS)
        output.backward(grad)
        results.append([output.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-5)


@pytest.mark.matrix
def test_exported_to_onnx(tmp_path):
    _, new, inputs = _pair("gpt2")
    path = tmp_path / "model.onnx"
    resfx.export.to_onnx(new.eval(), path, kwargs=inputs)
    session = resfx.export.session(path)
    feeds = {i.name: inputs[i.name].numpy() for i in session.get_inputs()}
    got = torch.from_numpy(session.run(None, feeds)[0])
    torch.testing.assert_close(got, new(**inputs).logits.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", [None, 1])
def test_two_phases_need_blocks(block):
    with pytest.raises(ValueError, match="block must be at least 2"):
        resfx.AttnRes(block=block, two_phase=True)
