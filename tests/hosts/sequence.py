"""What tests of mixers in real architectures share: rewritten hosts, made once, and calls of them with padding."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from hosts import BY_NAME
from hosts.made import randomise

import resfx

METHODS = {
    "swa": resfx.ShortSWA(window=3), "chunk": resfx.ShortSWA(window=3, kind="chunk", placement="branch"),
    "canon": resfx.Canon(), "conv": resfx.ShortConv(), "lean": resfx.ShortSWA(window=3, heads=1, head_dim=6),
}  # fmt: skip
HOSTS = ("gpt2", "llama", "qwen3", "gpt_neox", "bert", "vit", "t5")


def pairs(hosts, default):
    """Every host with every method; only in the matrix, unless ``default`` has the host or the pair."""
    usual = lambda h, m: h in default or (h, m) in default
    return [pytest.param(h, m, marks=() if usual(h, m) else pytest.mark.matrix) for h in hosts for m in METHODS]


def given(host: str, dtype=torch.float32, batch=2, length=7):
    """One call; the first text has two positions of padding on the left."""
    inputs = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v
              for k, v in BY_NAME[host].inputs(batch, length).items()}  # fmt: skip
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, :2] = 0
    return inputs


@functools.cache
def made(host: str, method: str, dtype=torch.float64):
    """``(host, rewritten, inputs)``. Shared: nothing may change them."""
    model, inputs = BY_NAME[host].make().to(dtype), given(host, dtype)
    return model, resfx.rewrite(model, METHODS[method], kwargs=inputs), inputs


def acting(host: str, method: str, dtype=torch.float64):
    """A copy whose mixers are off their start, and inputs."""
    _, start, inputs = made(host, method, dtype)
    new = copy.deepcopy(start)
    randomise(new, 0.3)
    return new, inputs


def logits(output):
    return output if torch.is_tensor(output) else output.logits
