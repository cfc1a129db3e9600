"""Decoding with ``torch.compile``: one graph for every token, and words where a call needs a capture first."""

from __future__ import annotations

import pytest
import torch
import transformers
from hosts.generation import given_cache
from torch._dynamo.testing import CompileCounter

import resfx

IDS = torch.arange(3, 9)[None]
# What a guard reads of a cache, the compiler of torch 2.11 cannot: the graph ends there.
reads_objects = pytest.mark.skipif(torch.__version__ < "2.12", reason="torch 2.11 compiles no cache's attributes")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def rewritten(mode):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                      intermediate_size=48, num_key_value_heads=2)  # fmt: skip
    new = resfx.rewrite(transformers.LlamaForCausalLM(config).eval(), mode, args=(IDS,), check=False)
    with torch.no_grad():
        for p in resfx.of(new).new_parameters().values():
            p.add_(0.05 * torch.randn_like(p))
    return new


@pytest.mark.every(3)
@pytest.mark.parametrize("mode", ["ddl", "attnres", "short_swa"])
def test_a_call_like_none_before_compiles_whole(mode):
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    for given in ({"inputs_embeds": torch.randn(1, 6, 32)}, {"input_ids": IDS, "attention_mask": mask}):
        new, twin = rewritten(mode), rewritten(mode)
        torch._dynamo.reset()
        got = torch.compile(new, backend="eager", fullgraph=True)(**given, use_cache=False, labels=IDS)
        want = twin(**given, use_cache=False, labels=IDS)
        torch.testing.assert_close(got.logits, want.logits)
        parameters = [list(resfx.of(m).new_parameters().values()) for m in (new, twin)]
        got, want = (torch.autograd.grad(o.loss, p) for o, p in zip((got, want), parameters, strict=True))
        torch.testing.assert_close(got, want)


@reads_objects
@torch.no_grad()
def test_a_call_like_none_before_with_a_cache_says_how_to_compile_it_whole():
    new, cache = rewritten("attnres"), transformers.StaticCache(config=rewritten("attnres").config, max_cache_len=9)
    whole = torch.compile(new, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="make it once before"):
        whole(IDS, **given_cache(new, cache))


@pytest.mark.matrix
@reads_objects
@torch.no_grad()
def test_a_call_like_none_before_runs_where_graphs_may_end():
    new, given = rewritten("attnres"), {"inputs_embeds": torch.randn(1, 6, 32)}
    counted = CompileCounter()
    compiled = torch.compile(new, backend=counted)
    want, first = new(IDS).logits, compiled(**given).logits
    torch.testing.assert_close(first, new(**given).logits)
    torch._dynamo.reset()
    counted.clear()
    torch.testing.assert_close(compiled(**given).logits, first)
    torch.testing.assert_close(compiled(IDS).logits, want)
    assert counted.frame_count == 2


@reads_objects
@pytest.mark.parametrize(
    "mode",
    [
        "short_swa",
        *(pytest.param(m, marks=pytest.mark.matrix) for m in (resfx.AttnRes(block=2), "ddl", "denseformer", "mhc")),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_step_with_a_cache_of_fixed_size_compiles_once(mode):
    new, tokens = rewritten(mode), 64
    asked = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    want = new.generate(IDS, **asked)[:, IDS.shape[1] :]
    assert torch.equal(new.generate(IDS, **asked, cache_implementation="static")[:, IDS.shape[1] :], want)
    cache, counted = transformers.StaticCache(config=new.config, max_cache_len=80), CompileCounter()
    step, token, at, got = new, IDS, torch.arange(IDS.shape[1])[None], []
    for i in range(tokens):
        if i == 2:  # both kinds of calls were made by then
            step = torch.compile(new, backend=counted, fullgraph=True)
        token = step(token, position_ids=at, **given_cache(new, cache)).logits[:, -1:].argmax(-1)
        at = at[:, -1:] + 1
        got.append(token)
    assert torch.equal(torch.cat(got, -1), want)
    assert counted.frame_count == 1


@torch.no_grad()
def test_masks_stay_calls_where_a_cache_lends_its_tensors():
    """What a mask's maker converts without effect is not handed on to the layers in its place."""
    new = rewritten("denseformer")
    cache = transformers.StaticCache(config=new.config, max_cache_len=32)
    for ids, at in ((IDS, 0), (IDS[:, :1], IDS.shape[1]), (IDS[:, :1], IDS.shape[1] + 1)):
        new(ids, position_ids=torch.arange(at, at + ids.shape[1])[None], **given_cache(new, cache))
    sources = [code.source for _, code in new.model._resfx_unit.variants]
    assert len(sources) == 3 and all("create_causal_mask(" in s for s in sources)
    assert not any("_resfx_unit" in vars(layer) for layer in new.model.layers)
    fresh = transformers.StaticCache(config=new.config, max_cache_len=32)
    assert torch.equal(new(IDS, **given_cache(new, fresh)).logits, new(IDS).logits)


class Chosen(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)

    def forward(self, x, bound=None):
        if bound is not None and (x > bound).any():
            x = x / 2
        return x + self.linear(self.norm(x))


def test_what_cannot_be_captured_says_so_in_the_librarys_words():
    x = torch.randn(2, 3, 8)
    new = resfx.rewrite(torch.nn.Sequential(Chosen()), "ddl", args=(x,))
    with pytest.raises(resfx.errors.CaptureError, match="tensor values"):
        torch.compile(new[0], backend="eager")(x, 0.5)
