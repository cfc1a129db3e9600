"""Generation: with a cache, without one, and in a loop of ONNX Runtime, the same tokens."""

from __future__ import annotations

import pytest
import torch
from hosts import BY_NAME, tokens
from hosts.generation import CAUSAL, METHODS, STEPS, acting, generated, given_cache, prompts
from hosts.sequence import pairs
from packaging.version import Version

import resfx

OLD = Version(torch.__version__) < Version("2.12")
AGREE = {("gpt2", "chunk"), ("llama", "canon")}


@pytest.mark.every(2)
@pytest.mark.parametrize("host, method", pairs(CAUSAL, AGREE))
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
@pytest.mark.parametrize("host, method", pairs(CAUSAL, {("llama", "lean")}))
def test_a_cache_of_fixed_size(host, method):
    new = acting(host, method)
    static = generated(new, True, do_sample=False, cache_implementation="static")
    assert torch.equal(static, generated(new, False, do_sample=False))


@pytest.mark.matrix
def test_a_cache_of_fixed_size_that_the_caller_makes():
    """The host must go on hiding its empty places, of which nothing but the cache tells."""
    from transformers import StaticCache

    new, ids = acting("llama", "swa"), prompts(2)[0]
    cache = StaticCache(config=new.config, max_cache_len=16)
    with torch.no_grad():
        want = new(ids).logits[:, 4:]
        steps = [new(part, **given_cache(new, cache)).logits for part in ids.split([4] + [1] * (ids.shape[1] - 4), 1)]
    torch.testing.assert_close(torch.cat(steps[1:], 1), want)


@pytest.mark.matrix
@pytest.mark.parametrize("method", METHODS)
def test_steps_that_generate_compiles(method):
    """What ``generate`` does of itself on a GPU with a cache of fixed size."""
    from transformers import CompileConfig

    compiled = CompileConfig(backend="aot_eager", mode="default")
    compiled._compile_all_devices = True
    new = acting("llama", method)
    torch._dynamo.reset()
    got = generated(new, True, do_sample=False, cache_implementation="static", compile_config=compiled)
    assert torch.equal(got, generated(new, False, do_sample=False))


@pytest.mark.matrix
@pytest.mark.parametrize("host, method", pairs(CAUSAL, ()))
def test_beams_in_a_cache_of_fixed_size_and_a_prompt_in_chunks(host, method):
    new = acting(host, method)
    beams = {"do_sample": False, "num_beams": 3}
    static = generated(new, True, cache_implementation="static", **beams)
    assert torch.equal(static, generated(new, False, **beams))
    chunks = generated(new, True, do_sample=False, prefill_chunk_size=4)
    assert torch.equal(chunks, generated(new, False, do_sample=False))


@pytest.mark.matrix
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("method", ["swa", "canon", "conv"])
@pytest.mark.parametrize("host", ["gpt2", "llama", "qwen3", "gpt_neox"])
def test_two_hundred_steps(host, method, beams):
    new = acting(host, method)
    options = {"do_sample": False, "num_beams": beams}
    assert torch.equal(generated(new, True, 200, **options), generated(new, False, 200, **options))


@pytest.mark.matrix
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("method", ["swa", "canon", "conv"])
def test_two_hundred_steps_of_an_encoder_decoder(method, beams):
    """A left-padded encoder input for four rows; only the decoder's mixers keep anything."""
    new = acting("t5", method)
    options = {"do_sample": False, "num_beams": beams}
    want = generated(new, False, 200, **options)
    assert torch.equal(generated(new, True, 200, **options), want)
    assert torch.equal(generated(new, True, 200, cache_implementation="static", **options), want)


def exported(new, folder):
    """Prefill and step as two ONNX files in ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime")
    ids, mask = prompts(3)
    position = (mask.cumsum(1) - 1).clamp_min(0)
    call = {"input_ids": ids, "attention_mask": mask, "position_ids": position, "use_cache": True}
    with torch.no_grad():
        cache = new(**call).past_key_values
    longer = torch.cat([mask, mask[:, -1:]], 1)
    step = {"input_ids": ids[:, :1], "attention_mask": longer, "position_ids": position[:, :1], "use_cache": True}
    for name, example in (("prefill", call), ("step", step | given_cache(new, cache))):
        resfx.export.to_onnx(new, folder / name, kwargs=example, check="onnxruntime")
    return (runtime.InferenceSession(folder / name) for name in ("prefill", "step"))


@pytest.mark.matrix
@pytest.mark.skipif(OLD, reason="torch 2.11 lowers a row that attends to nothing to other values; the check says so")
@pytest.mark.parametrize("host, method", pairs(["gpt2", "llama"], {("gpt2", "lean")}))
def test_a_loop_in_onnx_runtime_generates_the_same_tokens(host, method, tmp_path):
    """Keys, values and the short windows go from outputs to inputs by name; another batch than the exported one."""
    new = acting(host, method)
    session, step = exported(new, tmp_path)
    ids, mask = prompts(4)
    position, text = (mask.cumsum(1) - 1).clamp_min(0), ids
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "position_ids": position.numpy()}
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
        session = step
    assert torch.equal(text, generated(new, True, do_sample=False))


def test_generation_reuses_its_graphs():
    new = acting("gpt2", "swa")
    generated(new, True, do_sample=False)
    before = len(new.variants)
    ids = tokens(2, 12, 8)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0  # generate drops a mask of ones
    new.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert len(new.variants) == before
