"""Caches: every inserted mixer keeps its last few tokens beside the host's keys and values."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import BY_NAME, tokens
from hosts.generation import CAUSAL, METHODS, acting, given_cache, steps
from hosts.made import randomise
from hosts.sequence import pairs

import resfx
from resfx.errors import NoSitesError, ResfxError, VariantError
from resfx.runtime.huggingface import ShortState

SPLITS = [[5, 4, 1, 3], [6, 1, 1, 3, 1, 1]]  # a prompt in two calls; tokens one at a time and a few at once


@pytest.mark.every(4)
@pytest.mark.parametrize("splits", SPLITS, ids=str)
@pytest.mark.parametrize("host, method", pairs(CAUSAL, {("gpt2", "swa"), ("llama", "lean")}))
def test_any_split_into_calls_equals_one_call(host, method, splits):
    new = acting(host, method, torch.float64)
    ids, mask = tokens(3, 13, 3), torch.ones(3, 13, dtype=torch.long)
    mask[1, :2] = mask[2, :5] = 0
    with torch.no_grad():
        whole = new(input_ids=ids, attention_mask=mask, use_cache=False).logits
    got, cache = steps(new, ids, mask, splits)
    torch.testing.assert_close(got[mask.bool()], whole[mask.bool()], atol=1e-6, rtol=0)  # rotary angles are float32
    mixers = {n.removeprefix("resfx.") for n, m in new.named_modules() if getattr(m, "streams", 0)}
    assert mixers == {s.name for s in cache.layers if isinstance(s, ShortState)}


@pytest.mark.matrix
def test_encoder_decoder_cache():
    new = acting("t5", "swa", torch.float64)
    ids, mask, base = tokens(2, 8, 3), torch.ones(2, 8, dtype=torch.long), {"input_ids": tokens(2, 6)}
    with torch.no_grad():
        whole = new(**base, decoder_input_ids=ids, decoder_attention_mask=mask, use_cache=False).logits
    got, cache = steps(new, ids, mask, [4, 1, 1, 1, 1], **base)
    torch.testing.assert_close(got, whole, atol=1e-10, rtol=0)
    names = [s.name for s in cache.self_attention_cache.layers if isinstance(s, ShortState)]
    assert len(names) == 2 and all("decoder" in n for n in names)


def bytes_per_block(host: str, method: str) -> int:
    """What a block keeps for one text, in float32, whatever its length."""
    d, q, kv, first = {"gpt2": (32, 32, 32, 4 * 32), "llama": (32, 32, 16, 2 * 48)}[host]
    columns = {"canon": d + (q + 2 * kv) + d + first, "conv": q + 2 * kv}
    if method in columns:
        return 4 * 3 * columns[method]  # kernel 4: three columns of every channel
    window, inner, counter = {"swa": (4, d, 0), "chunk": (3, d, 8), "lean": (4, 6, 0)}[method]
    return 4 * 2 * (window - 1) * inner + (window - 1) + counter  # keys and values, a flag each; where its chunk began


@pytest.mark.matrix
@pytest.mark.parametrize("host, method", pairs(["gpt2", "llama"], {("gpt2", "swa")}))
def test_state_bytes_do_not_grow_with_the_text(host, method):
    new, batch = acting(host, method), 2
    ids, mask = tokens(batch, 20, 3), torch.ones(batch, 20, dtype=torch.long)
    for first in (6, 19):
        _, cache = steps(new, ids, mask, [first, 1])
        states = [s for s in cache.layers if isinstance(s, ShortState)]
        assert sum(s.nbytes() for s in states) == batch * 2 * bytes_per_block(host, method)
        stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for s in states for t in s.tensors}
        assert sum(stored.values()) == batch * 2 * bytes_per_block(host, method), "no view holds more than it shows"


@pytest.mark.matrix
@pytest.mark.parametrize("host, method", pairs(CAUSAL, {("gpt2", "canon")}))
def test_one_cache_continued_in_two_ways(host, method):
    """A later token changes nothing that was kept before it, and a state that was read is still what it was."""
    new = acting(host, method)
    ids, other, mask = tokens(2, 8, 3), tokens(2, 8, 3), torch.ones(2, 8, dtype=torch.long)
    other[:, 6:] = (ids[:, 6:] + 1) % 80 + 3
    with torch.no_grad():
        _, cache = steps(new, ids, mask, [6])
        _, same = steps(new, other, mask, [6])
        for a, b in zip(states_of(cache), states_of(same), strict=True):
            assert torch.equal(a, b)
        kept = [t.clone() for t in states_of(cache)]
        for text in (ids, other):
            call = {"input_ids": text[:, 6:], "attention_mask": mask} | given_cache(new, copy.deepcopy(cache))
            got = new(**call, use_cache=True).logits
            want = new(input_ids=text, attention_mask=mask, use_cache=False).logits[:, 6:]
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(states_of(cache), kept, strict=True))


def states_of(cache):
    return [t for s in cache.layers if isinstance(s, ShortState) for t in s.tensors]


def test_an_empty_cache_that_the_caller_made():
    import transformers

    new = acting("gpt2", "canon")
    ids = tokens(2, 9, 3)
    cache = transformers.DynamicCache(config=new.config)
    with torch.no_grad():
        first = new(input_ids=ids[:, :6], **given_cache(new, cache), use_cache=True)
        assert first.past_key_values is cache
        got = new(input_ids=ids[:, 6:7], **given_cache(new, cache), use_cache=True).logits
        want = new(input_ids=ids[:, :7], use_cache=False).logits[:, -1:]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    cache.reset()
    with torch.no_grad():
        again = new(input_ids=ids[:, :6], **given_cache(new, cache), use_cache=True)
    torch.testing.assert_close(again.logits, first.logits, atol=1e-6, rtol=0)


@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_hosts_whose_layers_are_all_of_one_kind(kind):
    """A host looks for its first layer of each kind in the cache: a mixer's state is neither."""
    config = copy.deepcopy(BY_NAME["gemma2"].make().config)
    config.layer_types = [kind] * config.num_hidden_layers
    new = resfx.rewrite(type(BY_NAME["gemma2"].make())(config).eval(), METHODS["conv"],
                        kwargs=BY_NAME["gemma2"].inputs(2, 7), check=False)  # fmt: skip
    randomise(new, 0.3)
    ids, mask = tokens(2, 12, 3), torch.ones(2, 12, dtype=torch.long)  # longer than the host's window of 8
    mask[0, :2] = 0
    got, _ = steps(new, ids, mask, [9, 1, 1, 1])
    with torch.no_grad():
        want = new(input_ids=ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], atol=1e-5, rtol=1e-5)


def test_rows_move_with_the_cache():
    new = acting("gpt2", "swa")
    ids, mask = tokens(3, 8, 3), torch.ones(3, 8, dtype=torch.long)
    _, cache = steps(new, ids, mask, [6, 1])
    order = torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    with torch.no_grad():
        got = new(input_ids=ids[order][:, 7:], **given_cache(new, copy.deepcopy(cache)), use_cache=True).logits
        want = new(input_ids=ids[order], use_cache=False).logits[:, -1:]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    cache.batch_repeat_interleave(2)
    assert all(t.shape[0] == 6 for s in cache.layers if isinstance(s, ShortState) for t in s.tensors)


def test_tokens_cannot_be_taken_back():
    new = acting("gpt2", "swa")
    _, cache = steps(new, tokens(2, 6, 3), torch.ones(2, 6, dtype=torch.long), [5, 1])
    assert not cache.is_croppable
    cache.crop(0)
    with pytest.raises(ResfxError, match="keeps only its last few tokens"):
        cache.crop(-2)
    # From transformers 5.24 on generate() itself refuses, after the prefill.
    refusal = "without an assistant or prompt look-up|requires a cache that can be cropped"
    with pytest.raises((ResfxError, ValueError), match=refusal):
        new.generate(torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]]), max_new_tokens=9, prompt_lookup_num_tokens=3,
                     do_sample=False, pad_token_id=0)  # fmt: skip


@pytest.mark.every(2)
@pytest.mark.parametrize("method", ["swa", "conv"])
def test_a_mask_of_pairs_is_refused(method):
    """It does not say which positions are padding, nor where one of several packed texts begins."""
    ids, pairs = tokens(2, 7, 3), torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    call = {"input_ids": ids, "attention_mask": pairs, "use_cache": False}
    with torch.no_grad(), pytest.raises(VariantError, match="one text to a row"):
        acting("gpt2", method)(**call)
    with pytest.raises(NoSitesError, match="one text to a row"):
        resfx.rewrite(BY_NAME["gpt2"].make(), METHODS[method], kwargs=call)


def test_a_cache_filled_by_another_model_is_refused():
    new, host = acting("gpt2", "swa"), BY_NAME["gpt2"].make()
    ids = tokens(2, 7, 3)
    with torch.no_grad():
        cache = host(input_ids=ids[:, :6], use_cache=True).past_key_values
        with pytest.raises(VariantError, match="have not seen"):
            new(input_ids=ids[:, 6:], **given_cache(new, cache), use_cache=True)
