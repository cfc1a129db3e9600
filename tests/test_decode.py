"""Decoding with a cache: every inserted mixer keeps its last few tokens beside the host's keys and values."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from conftest import randomise
from hosts import BY_NAME, tokens

import resfx
from resfx.errors import ResfxError, VariantError
from resfx.passes.decode import ShortState

METHODS = {
    "swa": resfx.ShortSWA(window=4), "canon": resfx.Canon(), "conv": resfx.ShortConv(),
    "chunk": resfx.ShortSWA(window=3, kind="chunk", rope=True, placement="branch"),
}  # fmt: skip
STEPS, PROMPT = 16, 9


@functools.cache
def acting(host: str, method: str, dtype=torch.float32):
    new = resfx.rewrite(BY_NAME[host].make().to(dtype), METHODS[method], kwargs=BY_NAME[host].inputs(2, 7), check=False)
    randomise(new, 0.3)
    return new


def prompts(batch=4):
    """Left-padded prompts of different lengths."""
    ids, mask = tokens(batch, PROMPT, 3), torch.ones(batch, PROMPT, dtype=torch.long)
    for row in range(batch):
        mask[row, :row] = 0
    return ids.masked_fill(mask == 0, 0), mask


def generated(model, cached: bool, count: int = STEPS, **options):
    ids, mask = prompts()
    torch.manual_seed(0)
    return model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
        use_cache=cached, **options,
    )  # fmt: skip


def cases():
    default = {
        ("gpt2", "swa"),
        ("gpt2", "canon"),
        ("llama", "swa"),
        ("llama", "canon"),
        ("llama", "conv"),
        ("gpt2", "chunk"),
    }
    for host in ("gpt2", "llama", "qwen3", "gpt_neox", "gemma2", "mixtral", "falcon"):
        for method in METHODS:
            yield pytest.param(host, method, marks=() if (host, method) in default else pytest.mark.matrix)


@pytest.mark.parametrize("host, method", list(cases()))
def test_cached_and_uncached_generation_agree_token_for_token(host, method):
    new = acting(host, method)
    plain = generated(BY_NAME[host].make(), True, do_sample=False)
    greedy = generated(new, True, do_sample=False)
    assert torch.equal(greedy, generated(new, False, do_sample=False))
    beams = {"do_sample": False, "num_beams": 4}
    assert torch.equal(generated(new, True, **beams), generated(new, False, **beams))
    sampled = {"do_sample": True, "temperature": 2.0}
    assert torch.equal(generated(new, True, **sampled), generated(new, False, **sampled))
    assert not torch.equal(greedy, plain), "the mixers must matter for this test to mean anything"


@pytest.mark.matrix
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("method", ["swa", "canon", "conv"])
@pytest.mark.parametrize("host", ["gpt2", "llama"])
def test_two_hundred_steps(host, method, beams):
    new = acting(host, method)
    options = {"do_sample": False, "num_beams": beams}
    assert torch.equal(generated(new, True, 200, **options), generated(new, False, 200, **options))


def steps(new, ids, mask, sizes, **base):
    """Logits of a prefill and later calls of the given sizes, and the cache."""
    name, mask_name = ("decoder_input_ids", "decoder_attention_mask") if base else ("input_ids", "attention_mask")
    cache, parts, t = None, [], 0
    with torch.no_grad():
        for size in sizes:
            call = {name: ids[:, t : t + size], mask_name: mask[:, : t + size], "use_cache": True}
            out = new(**base, **call, **({} if cache is None else {"past_key_values": cache}))
            cache, t = out.past_key_values, t + size
            parts.append(out.logits)
    return torch.cat(parts, 1), cache


@pytest.mark.parametrize(
    "host, method",
    [pytest.param(h, m, marks=() if (h, m) in {("gpt2", "swa"), ("gpt2", "chunk")} else pytest.mark.matrix)
     for h in ("gpt2", "llama") for m in METHODS],
)  # fmt: skip
def test_prefill_then_steps_equal_one_call(host, method):
    new = acting(host, method, torch.float64)
    ids, mask = tokens(3, 13, 3), torch.ones(3, 13, dtype=torch.long)
    mask[1, :2] = mask[2, :5] = 0
    with torch.no_grad():
        whole = new(input_ids=ids, attention_mask=mask, use_cache=False).logits
    ids, mask = (ids, mask) if "chunk" in method or "swa" in method else (ids[:, :9], mask[:, :9])
    whole = whole[:, : ids.shape[1]]
    got, cache = steps(new, ids, mask, [6, 1, 1, 3, 1, 1] if ids.shape[1] == 13 else [6, 1, 1, 1])
    torch.testing.assert_close(got[mask.bool()], whole[mask.bool()], atol=1e-6, rtol=0)  # rotary angles are float32
    torch.testing.assert_close(got[0], whole[0], atol=1e-12, rtol=0)
    mixers = {n: m for n, m in new.named_modules() if getattr(m, "streams", 0)}
    states = {s.name: s for s in cache.layers if isinstance(s, ShortState)}
    assert states.keys() == mixers.keys()
    for name, mixer in mixers.items():
        assert len(states[name].tensors) == mixer.streams
        kept = mixer.config.window - 1 if "swa" in name else 3
        sizes = {t.shape[-2] for t in states[name].tensors if t.is_floating_point()}
        assert sizes == {kept}


def test_encoder_decoder_cache():
    new = acting("t5", "swa", torch.float64)
    ids, mask, base = tokens(2, 8, 3), torch.ones(2, 8, dtype=torch.long), {"input_ids": tokens(2, 6)}
    with torch.no_grad():
        whole = new(**base, decoder_input_ids=ids, decoder_attention_mask=mask, use_cache=False).logits
    got, cache = steps(new, ids, mask, [4, 1, 1, 1, 1], **base)
    torch.testing.assert_close(got, whole, atol=1e-10, rtol=0)
    names = [s.name for s in cache.self_attention_cache.layers if isinstance(s, ShortState)]
    assert len(names) == 2 and all("decoder" in n for n in names)


def test_state_bytes_do_not_grow_with_the_text():
    new = acting("gpt2", "swa")
    ids, mask = tokens(2, 20, 3), torch.ones(2, 20, dtype=torch.long)
    sizes = []
    for first in (6, 19):
        _, cache = steps(new, ids, mask, [first, 1])
        sizes.append([s.nbytes() for s in cache.layers if isinstance(s, ShortState)])
    window, width, batch = 4, 32, 2
    expected = batch * (2 * (window - 1) * width * 4 + (window - 1))  # keys and values in float32, a flag each
    assert sizes[0] == sizes[1] == [expected, expected]


def test_an_empty_cache_that_the_caller_made():
    import transformers

    new = acting("gpt2", "canon")
    ids = tokens(2, 9, 3)
    cache = transformers.DynamicCache(config=new.config)
    with torch.no_grad():
        first = new(input_ids=ids[:, :6], past_key_values=cache, use_cache=True)
        assert first.past_key_values is cache
        got = new(input_ids=ids[:, 6:7], past_key_values=cache, use_cache=True).logits
        want = new(input_ids=ids[:, :7], use_cache=False).logits[:, -1:]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    cache.reset()
    with torch.no_grad():
        again = new(input_ids=ids[:, :6], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(again.logits, first.logits, atol=1e-6, rtol=0)


def test_rows_move_with_the_cache():
    new = acting("gpt2", "swa")
    ids, mask = tokens(3, 8, 3), torch.ones(3, 8, dtype=torch.long)
    _, cache = steps(new, ids, mask, [6, 1])
    order = torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    with torch.no_grad():
        got = new(input_ids=ids[order][:, 7:], past_key_values=copy.deepcopy(cache), use_cache=True).logits
        want = new(input_ids=ids[order], use_cache=False).logits[:, -1:]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    cache.batch_repeat_interleave(2)
    assert all(t.shape[0] == 6 for s in cache.layers if isinstance(s, ShortState) for t in s.tensors)


def test_tokens_cannot_be_taken_back():
    new = acting("gpt2", "swa")
    _, cache = steps(new, tokens(2, 6, 3), torch.ones(2, 6, dtype=torch.long), [5, 1])
    assert not cache.is_croppable
    with pytest.raises(ResfxError, match="keeps only its last few tokens"):
        cache.crop(-2)


def test_a_cache_filled_by_another_model_is_refused():
    new, host = acting("gpt2", "swa"), BY_NAME["gpt2"].make()
    ids = tokens(2, 7, 3)
    with torch.no_grad():
        cache = host(input_ids=ids[:, :6], use_cache=True).past_key_values
        with pytest.raises(VariantError, match="have not seen"):
            new(input_ids=ids[:, 6:], past_key_values=cache, use_cache=True)


def test_later_calls_reuse_the_graphs():
    new = acting("gpt2", "swa")
    generated(new, True, do_sample=False)
    before = len(new.variants)
    ids = tokens(2, 12, 8)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0  # generate drops a mask of ones
    new.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert len(new.variants) == before


@pytest.mark.parametrize("method", ["swa", pytest.param("canon", marks=pytest.mark.matrix)])
def test_a_loop_in_onnx_runtime_generates_the_same_tokens(method, tmp_path):
    """Prefill and step as two files; keys, values and the short windows go from outputs to inputs by name."""
    runtime = pytest.importorskip("onnxruntime")
    new = acting("gpt2", method)
    ids, mask = prompts(3)
    position = (mask.cumsum(1) - 1).clamp_min(0)
    call = {"input_ids": ids, "attention_mask": mask, "position_ids": position, "use_cache": True}
    with torch.no_grad():
        cache = new(**call).past_key_values
    longer = torch.cat([mask, mask[:, -1:]], 1)
    step = {"input_ids": ids[:, :1], "attention_mask": longer, "position_ids": position[:, :1], "use_cache": True}
    for name, example in (("prefill", call), ("step", step | {"past_key_values": cache})):
        resfx.export.to_onnx(new, tmp_path / name, kwargs=example, check="onnxruntime")
    prefill, again = (runtime.InferenceSession(tmp_path / name) for name in ("prefill", "step"))

    ids, mask = prompts(4)  # another batch than the exported one
    position, text = (mask.cumsum(1) - 1).clamp_min(0), ids
    session, feeds = prefill, {"input_ids": ids, "attention_mask": mask, "position_ids": position}
    feeds = {k: v.numpy() for k, v in feeds.items()}
    for _ in range(STEPS):
        names = [o.name for o in session.get_outputs()]
        out = dict(zip(names, session.run(names, feeds), strict=True))
        scores = torch.from_numpy(out.pop("logits"))[:, -1]
        scores[:, 2] = float("-inf")  # no end before the last step, as min_new_tokens has it
        text = torch.cat([text, scores.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        position = position[:, -1:] + 1
        feeds = {k.replace("present", "past", 1): v for k, v in out.items()}
        feeds |= {"input_ids": text[:, -1:].numpy(), "attention_mask": mask.numpy(), "position_ids": position.numpy()}
        session = again
    assert torch.equal(text, generated(new, True, do_sample=False))
