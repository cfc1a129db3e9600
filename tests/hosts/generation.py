"""What tests of decoding share: rewritten hosts whose mixers act, left-padded prompts, and ways to run them."""

from __future__ import annotations

import functools
import inspect

import torch
from hosts import BY_NAME, tokens
from hosts.made import randomise

import resfx

METHODS = {
    "swa": resfx.ShortSWA(window=4), "canon": resfx.Canon(), "conv": resfx.ShortConv(),
    "chunk": resfx.ShortSWA(window=3, kind="chunk", rope=True, placement="branch"),
    "lean": resfx.ShortSWA(window=4, heads=1, head_dim=6),
}  # fmt: skip
CAUSAL = ("gpt2", "llama", "qwen3", "gpt_neox", "gemma2", "mixtral", "falcon")
STEPS, PROMPT = 16, 9


@functools.cache
def acting(host: str, method: str, dtype=torch.float32):
    """A host with mixers off their start. Shared: nothing may change it."""
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
    """``count`` more tokens of four left-padded prompts, from one seed."""
    ids, mask = prompts()
    torch.manual_seed(0)
    return model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
        use_cache=cached, **options,
    )  # fmt: skip


def given_cache(model, cache):
    """The argument that a cache is: from transformers 5.24 on it has another name."""
    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
    return {name: cache}


def steps(new, ids, mask, sizes, cache=None, **base):
    """Logits of a prefill and later calls of the given sizes, and the cache. ``base``: an encoder's inputs."""
    name, mask_name = ("decoder_input_ids", "decoder_attention_mask") if base else ("input_ids", "attention_mask")
    parts, t = [], 0
    with torch.no_grad():
        for size in sizes:
            call = {name: ids[:, t : t + size], mask_name: mask[:, : t + size], "use_cache": True}
            out = new(**base, **call, **({} if cache is None else given_cache(new, cache)))
            cache, t = out.past_key_values, t + size
            parts.append(out.logits)
    return torch.cat(parts, 1), cache
