"""What depth methods read and where: streams apart, chosen blocks, other methods beside them, recomputed reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hosts import BY_NAME, LAYERS, tokens
from hosts.depth import METHODS, equal, loss_of, pair
from hosts.made import randomise
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import resfx
from resfx.methods.depth.base import Read
from resfx.passes.check import tensors_of


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


@pytest.mark.filterwarnings("ignore:gradients of .* round differently")  # on some processors, by 2e-14
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
    assert [new.report.methods_at(s, "read") for s in new.report.sites] == [["attnres"]] * 2 + [[]] * 2


@pytest.mark.every(3)
@pytest.mark.parametrize(("method", "host"), [("attnres", "llama"), ("dca", "gpt2"), ("denseformer", "bert"),
                                              ("mudd", "nanogpt")])  # fmt: skip
def test_deep_delta_learning_before_and_after_a_read(method, host):
    model, inputs = BY_NAME[host].make(), BY_NAME[host].inputs(2, 7)
    for modes in (["ddl", METHODS[method]], [METHODS[method], "ddl"]):
        new = resfx.rewrite(model, modes, kwargs=inputs)
        assert equal(model(**inputs), new(**inputs))
        assert all(new.report.methods_at(s, "replaced") == ["ddl"] for s in new.report.sites)
        assert all(new.report.methods_at(s, "read") == [METHODS[method].name] for s in new.report.sites)
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
    with pytest.raises(resfx.errors.NoSitesError, match="a norm or an activation follows every add"):
        resfx.rewrite(BY_NAME["bert"].make(), method(start="published"), kwargs=BY_NAME["bert"].inputs(2, 7))


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


@pytest.mark.every(2)
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
