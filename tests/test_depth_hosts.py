"""Depth methods on real architectures. A few pairs by default; every method on every host with ``-m matrix``."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json

import pytest
import torch
from conftest import randomise
from hosts import BY_NAME, LAYERS, tokens
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import resfx
from resfx.ops._depth import DepthPlace, Read
from resfx.passes.check import tensors_of

METHODS = {
    "denseformer": resfx.DenseFormer(), "attnres": resfx.AttnRes(), "attnres-block": resfx.AttnRes(block=2),
    "attnres-phases": resfx.AttnRes(block=2, two_phase=True),
    "delta": resfx.DeltaAttnRes(), "delta-block": resfx.DeltaAttnRes(block=2, null=True),
    "depth-read": resfx.DepthRead(window=2, heads=2), "depth-read-full": resfx.DepthRead(window=None, shared=True),
    "depth-read-stream": resfx.DepthRead(window=2, at="stream"), "elc": resfx.ELC(),
    "elc-normalized": resfx.ELC(variant="normalized"), "elc-weighted": resfx.ELC(variant="weighted"),
    "elc-base": resfx.ELC(variant="base"),
    "dca": resfx.DCA(), "dca-1": resfx.DCA(k=1), "mudd": resfx.MUDD(), "mudd-prepost": resfx.MUDD(prepost=True),
    "vertical": resfx.VerticalAttention(),
}  # fmt: skip
HOST_NAMES = ["gpt2", "llama", "qwen3", "gemma2", "gpt_neox", "falcon", "bert", "vit", "t5", "bart", "nanogpt"]
CAUSAL = [n for n in HOST_NAMES if BY_NAME[n].causal]


def pairs(*chosen, hosts=HOST_NAMES):
    """Every method on every host; those not chosen run with ``-m matrix`` only."""
    assert set(chosen) <= {f"{m}-{h}" for m in METHODS for h in hosts}
    return [
        pytest.param(m, h, id=f"{m}-{h}", marks=[] if f"{m}-{h}" in chosen else pytest.mark.matrix)
        for m in METHODS
        for h in hosts
    ]


@functools.cache
def pair(method, host):
    """``(original, rewritten, inputs)``; the new parameters are put back by whoever moves them."""
    torch.manual_seed(0)
    model = BY_NAME[host].make()
    inputs = BY_NAME[host].inputs(2, 7)
    return model, resfx.rewrite(model, METHODS[method], kwargs=inputs), inputs


@pytest.fixture
def kept(method, host):
    """The pair at its start; new parameters that a test moves are put back."""
    model, new, inputs = pair(method, host)
    saved = {n: p.detach().clone() for n, p in new.new_parameters().items()}
    yield model, new, inputs
    with torch.no_grad():
        for name, parameter in new.new_parameters().items():
            parameter.copy_(saved[name])


@pytest.fixture
def moved(kept):
    """The pair with its new parameters off their start, for one test."""
    randomise(kept[1])
    return kept


def equal(a, b):
    left, right = tensors_of(a), tensors_of(b)
    return len(left) == len(right) > 0 and all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def loss_of(outputs):
    terms = [t for t in tensors_of(outputs) if t.is_floating_point() and t.requires_grad]
    return sum((t * torch.cos(torch.arange(t.numel(), dtype=t.dtype) + 1).view(t.shape)).sum() for t in terms)


EXACT = pairs(
    "denseformer-gpt2",
    "attnres-llama",
    "attnres-block-t5",
    "attnres-phases-qwen3",
    "attnres-phases-bert",
    "delta-bert",
    "depth-read-full-vit",
    "depth-read-stream-gemma2",
    "elc-bert",
    "elc-weighted-nanogpt",
    "elc-base-t5",
    "dca-gpt_neox",
    "dca-1-falcon",
    "mudd-gpt2",
    "mudd-bert",
    "vertical-vit",
)


@pytest.mark.parametrize(("method", "host"), EXACT)
def test_start_is_exact_in_eval_and_training_at_other_sizes_too(method, host):
    model, new, inputs = pair(method, host)
    assert equal(model(**inputs), new(**inputs))
    other = BY_NAME[host].inputs(3, 5)
    before = len(new.variants)
    assert equal(model(**other), new(**other))
    assert len(new.variants) == before, "batch and sequence are dynamic: no new capture"
    assert all(s.reads == METHODS[method].name for s in new.report.sites)


@pytest.mark.parametrize(("method", "host"), pairs("attnres-llama", "mudd-gpt2", "elc-bert"))
def test_a_training_step_at_the_start_is_the_hosts(method, host):
    model, new, inputs = pair(method, host)
    results = []
    for module in (model, new):
        module.train()
        torch.manual_seed(3)
        outputs = module(**inputs)
        parameters = [p for p in model.parameters() if p.requires_grad]
        results.append((outputs, torch.autograd.grad(loss_of(outputs), parameters, allow_unused=True)))
        module.eval()
    assert equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:  # a zero correction adds zeros to a gradient, in another order of summation
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-7)


HALF = pairs("denseformer-bert", "attnres-gpt2", "depth-read-nanogpt", "dca-llama", "mudd-gpt_neox")


@pytest.mark.parametrize(("method", "host"), HALF)
def test_start_is_exact_in_bfloat16(method, host):
    model = BY_NAME[host].make().bfloat16()
    inputs = BY_NAME[host].inputs(2, 6)
    inputs = {k: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    new = resfx.rewrite(model, METHODS[method], kwargs=inputs)
    assert {p.dtype for p in new.new_parameters().values()} == {torch.bfloat16}
    assert equal(model(**inputs), new(**inputs))


LEARN = pairs(
    "denseformer-gpt2", "attnres-llama", "delta-bert", "depth-read-nanogpt", "elc-bert", "dca-gpt_neox", "mudd-nanogpt"
)


@pytest.mark.parametrize(("method", "host"), LEARN)
def test_every_new_parameter_acts_and_learns(method, host, moved):
    model, new, inputs = moved
    assert not equal(model(**inputs), new(**inputs))
    parameters = new.new_parameters()
    for name, grad in zip(parameters, torch.autograd.grad(loss_of(new(**inputs)), parameters.values()), strict=True):
        assert grad.abs().max() > 0, name


@pytest.mark.parametrize(("method", "host"), LEARN)
def test_two_steps_from_the_start_reach_every_new_parameter(method, host, kept):
    """A zero in front of a parameter holds its gradient back for one step, and no longer."""
    _, new, inputs = kept
    parameters, reached = new.new_parameters(), set()
    for _ in range(2):
        grads = torch.autograd.grad(loss_of(new(**inputs)), parameters.values())
        with torch.no_grad():
            for (name, parameter), grad in zip(parameters.items(), grads, strict=True):
                parameter -= 1e-2 * grad / (grad.abs().max() + 1e-12)
                reached |= {name} if grad.abs().max() > 0 else set()
    assert reached == set(parameters)


@pytest.mark.parametrize(("method", "host"), LEARN)
def test_twenty_steps_on_the_new_parameters_alone_lower_the_loss(method, host):
    torch.manual_seed(0)
    model = BY_NAME[host].make().double()
    inputs = BY_NAME[host].inputs(2, 6)
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    new = resfx.rewrite(model, METHODS[method], kwargs=inputs)
    optimizer = torch.optim.Adam(new.new_parameters().values(), lr=0.01)
    losses = []
    for _ in range(21):
        logits = tensors_of(new(**inputs))[0]
        target = torch.arange(logits[..., 0].numel()).view(logits.shape[:-1]) % logits.shape[-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses


@pytest.mark.parametrize(
    ("method", "host"), pairs("attnres-nanogpt", "mudd-nanogpt", "dca-nanogpt", "depth-read-nanogpt")
)
def test_compiled_it_computes_the_same(method, host, moved):
    _, new, inputs = moved
    torch._dynamo.reset()
    with torch.no_grad():
        want, got = (
            tensors_of(new(**inputs)),
            tensors_of(torch.compile(new, backend="aot_eager", fullgraph=True)(**inputs)),
        )
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_inductor_agrees():
    """One read over a list of sources, forward and backward."""
    torch._dynamo.reset()
    place = DepthPlace(width=16, context_width=16, kind="mlp", depth=1, dtype=torch.float32, device=torch.device("cpu"),
                       read=2, sources=3, last=False, outputs=1)  # fmt: skip
    read = resfx.AttnRes().build(place)
    torch.nn.init.normal_(read.query)
    sources = [torch.randn(2, 5, 16, requires_grad=True) for _ in range(3)]
    exact, doubles = copy.deepcopy(read).double(), [s.detach().double().requires_grad_() for s in sources]
    results = []
    for run, module, given in ((torch.compile(read, fullgraph=True), read, sources), (exact, exact, doubles)):
        out = run(given, given[-1])
        results.append([out, *torch.autograd.grad(out.square().sum(), [*given, *module.parameters()])])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=3e-6 * float(want.detach().abs().max()))


@pytest.mark.parametrize(("method", "host"), pairs("mudd-gpt2", hosts=CAUSAL))
def test_generate_with_a_cache_is_generate_without(method, host, moved):
    """Reads see one token at a time: decoding in steps is prefill, also once the reads have learned."""
    _, new, _ = moved
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    want = new.generate(tokens(2, 5), use_cache=False, **options)
    assert torch.equal(new.generate(tokens(2, 5), **options), want)


@pytest.mark.parametrize(("method", "host"), pairs("mudd-gpt2", "dca-1-bart"))
def test_save_and_load(method, host, moved, tmp_path):
    model, new, inputs = moved
    resfx.save(new, tmp_path / "kept")
    again = resfx.load(tmp_path / "kept", model, kwargs=inputs)
    assert again._resfx.applications[0].method == METHODS[method]
    assert equal(new(**inputs), again(**inputs))


@pytest.mark.parametrize(("method", "host"), pairs("mudd-nanogpt"))
def test_onnx_runtime_agrees(method, host, moved, tmp_path):
    _, new, inputs = moved
    path = tmp_path / "model.onnx"
    resfx.export.to_onnx(new, path, kwargs=inputs)
    session = resfx.export.session(path)
    leaves = tensors_of(inputs)
    feeds = {i.name: t.numpy() for i, t in zip(session.get_inputs(), leaves, strict=True)}
    for a, b in zip(tensors_of(new(**inputs)), session.run(None, feeds), strict=False):
        torch.testing.assert_close(torch.from_numpy(b), a.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_configs_are_plain_data(method):
    config = METHODS[method]
    data = json.loads(json.dumps(config.to_dict()))
    assert type(config)(**{k: v for k, v in data.items() if k != "method"}) == config
    assert resfx.ops.method.methods()[data["method"]] is type(config)


def reads_of(new):
    return {n: m for n, m in new.named_modules() if isinstance(m, Read)}


def calls_of(new, inputs):
    """``{name: (sources, x, result)}`` of every read in one call."""
    seen = {}
    hooks = [
        m.register_forward_hook(lambda m, a, out, n=n: seen.update({n: (*a, out)})) for n, m in reads_of(new).items()
    ]
    with torch.no_grad():
        new(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


def test_encoder_and_decoder_are_read_apart():
    _, new, inputs = pair("attnres", "t5")
    lengths = {name.split(".")[2]: {s.shape[1] for s in sources} | {x.shape[1]}
               for name, (sources, x, _) in calls_of(new, inputs).items()}  # fmt: skip
    assert lengths == {"encoder": {7}, "decoder": {8}}
    assert len(reads_of(new)) == 2 * LAYERS + 3 * LAYERS


def test_fused_projections_of_flattened_heads_read_what_is_theirs():
    """BLOOM: rows of q, k and v lie within each head, and batch and heads are one axis of a biased product."""
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=89, hidden_size=32, n_layer=LAYERS, n_head=4)).double().eval()
    inputs = {"input_ids": tokens(2, 7), "use_cache": False}
    new = resfx.rewrite(model, "mudd", kwargs=inputs)
    assert equal(model(**inputs), new(**inputs))
    randomise(new)
    calls = list(calls_of(new, inputs).values())
    q, k, v, r = calls[0][2]
    block = model.transformer.h[1]
    fused = block.self_attention.query_key_value

    def three(module, args, out):
        rows = [F.linear(block.input_layernorm(h), fused.weight, fused.bias) for h in (q, k, v)]
        return torch.stack([row.unflatten(-1, (4, 3, 8))[..., i, :] for i, row in enumerate(rows)], -2).flatten(-3)

    hook = fused.register_forward_hook(three)
    seen = []
    first = block.register_forward_pre_hook(lambda m, a: (r, *a[1:]))
    last = block.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(**inputs)
    for handle in (hook, first, last):
        handle.remove()
    torch.testing.assert_close(calls[1][1], seen[0], rtol=1e-6, atol=1e-6)  # its attention casts to float32
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(new.generate(tokens(2, 5), **options), new.generate(tokens(2, 5), use_cache=False, **options))


def test_only_chosen_blocks_read():
    inputs = BY_NAME["llama"].inputs(2, 7)
    new = resfx.rewrite(BY_NAME["llama"].make(), resfx.AttnRes(), kwargs=inputs, include="model.layers.0")
    assert list(reads_of(new)) == ["resfx.attnres.model.layers.0.read1"]
    assert [s.reads for s in new.report.sites] == ["attnres"] * 2 + [""] * 2


@pytest.mark.parametrize(("method", "host"), [("attnres", "llama"), ("dca", "gpt2"), ("denseformer", "bert"),
                                              ("mudd", "nanogpt")])  # fmt: skip
def test_deep_delta_learning_before_and_after_a_read(method, host):
    model, inputs = BY_NAME[host].make(), BY_NAME[host].inputs(2, 7)
    for modes in (["ddl", METHODS[method]], [METHODS[method], "ddl"]):
        new = resfx.rewrite(model, modes, kwargs=inputs)
        assert equal(model(**inputs), new(**inputs))
        assert {s.method for s in new.report.sites} == {"ddl"}
        assert {s.reads for s in new.report.sites} == {METHODS[method].name}
        randomise(new)
        parameters = new.new_parameters()
        grads = torch.autograd.grad(loss_of(new(**inputs)), parameters.values())
        assert all(g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("method", ["attnres", "dca", "elc"])
def test_sources_add_up_to_the_stream_whatever_replaced_the_adds(method):
    """Behind Deep Delta Learning a source is what an add really added; written-back reads are taken out again."""
    inputs = BY_NAME["nanogpt"].inputs(2, 7)
    new = resfx.rewrite(BY_NAME["nanogpt"].make().double(), ["ddl", METHODS[method]], kwargs=inputs)
    randomise(new)
    calls = calls_of(new, inputs)
    assert len(calls) >= LAYERS
    for sources, x, _ in calls.values():
        torch.testing.assert_close(sum(sources), x)


def test_reads_beside_a_token_mixer():
    model, inputs = BY_NAME["llama"].make(), BY_NAME["llama"].inputs(2, 7)
    new = resfx.rewrite(model, [resfx.ShortSWA(window=3), resfx.DenseFormer()], kwargs=inputs)
    assert equal(model(**inputs), new(**inputs))
    assert sum(p.numel() for n, p in new.new_parameters().items() if ".denseformer." in n) == 2 + 3
    randomise(new)
    assert not equal(model(**inputs), new(**inputs))


def test_a_mixer_before_all_projections_is_not_copied():
    inputs = BY_NAME["nanogpt"].inputs(2, 7)
    with pytest.raises(resfx.errors.NoSitesError, match="a state for each"):
        resfx.rewrite(BY_NAME["nanogpt"].make(), [resfx.Canon(), resfx.MUDD()], kwargs=inputs)


def test_two_reads_of_one_stream_are_a_conflict():
    with pytest.raises(resfx.errors.ConflictError, match="denseformer rewrote it already"):
        resfx.rewrite(BY_NAME["nanogpt"].make(), ["denseformer", "attnres"], args=(tokens(2, 7),))


@pytest.mark.parametrize("method", [resfx.AttnRes, resfx.DCA, resfx.ELC])
def test_published_forms_that_need_a_sum_leave_post_norm_hosts_alone(method):
    with pytest.raises(resfx.errors.NoSitesError, match="normalised after every add"):
        resfx.rewrite(BY_NAME["bert"].make(), method(start="published"), kwargs=BY_NAME["bert"].inputs(2, 7))


def test_channel_first_streams_are_left_alone():
    class Conv(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

        def forward(self, x):
            for conv in self.convs:
                x = x + conv(torch.relu(x))
            return x

    with pytest.raises(resfx.errors.NoSitesError, match="channel-first"):
        resfx.rewrite(Conv(), "denseformer", args=(torch.randn(2, 4, 8, 8),))


class Alive(TorchDispatchMode):
    """Bytes that a call made and something still holds: what waits for the backward pass."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tensors_of(out):
            self.made[t.untyped_storage()._cdata] = StorageWeakRef(t.untyped_storage()), t.untyped_storage().nbytes()
        return out

    def bytes(self):
        return sum(size for ref, size in self.made.values() if not ref.expired())


RECOMPUTED = ["attnres", "delta-block", "denseformer", "elc-normalized", "dca", "mudd", "depth-read", "vertical"]


@pytest.mark.parametrize("method", RECOMPUTED)
def test_recomputed_reads_change_no_number_and_keep_less(method):
    model, inputs = BY_NAME["nanogpt"].make().bfloat16(), BY_NAME["nanogpt"].inputs(2, 9)
    results, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        new = resfx.rewrite(model, dataclasses.replace(METHODS[method], recompute=recompute), kwargs=inputs)
        randomise(new)
        values = {n: p.detach().clone().requires_grad_() for n, p in new.new_parameters().items()}
        with Alive() as alive:
            outputs = torch.func.functional_call(new, values, (), inputs)  # recomputed outside this call
            kept.append(alive.bytes())
        results.append([outputs, *torch.autograd.grad(loss_of(outputs), list(values.values()))])
    assert all(torch.equal(a, b) and b.abs().max() > 0 for a, b in zip(*results, strict=True))
    assert kept[1] < kept[0]


class Looped(torch.nn.Module):
    """Blocks of attention-less sublayers whose weights are used again and again."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.first, self.second = (torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(2))
        self.a, self.b = Add(self.first), Add(self.second)

    def forward(self, x):
        for _ in range(3):
            x = self.b(self.norm, self.a(self.norm, x))
        return x


class Add(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, norm, x):
        return x + self.f(norm(x))


def test_a_block_that_is_used_again_is_a_new_block():
    model = Looped()
    new = resfx.rewrite(model, "denseformer", args=(torch.randn(2, 5, 8),))
    assert [m.weight.numel() for m in reads_of(new).values()] == [2, 3, 4]
    assert equal(model(torch.ones(3, 4, 8)), new(torch.ones(3, 4, 8)))
