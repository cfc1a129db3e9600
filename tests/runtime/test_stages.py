"""A model in stages: run one behind the other they are the model, in values and in every gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import NanoGPT, small, tokens
from hosts.made import randomise
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import resfx
from resfx.errors import InputError, OptionError, VariantError

CROSSING = {None: 1, "value_residual": 2, "attnres": 6, "mhc": 1, "ddl": 1, "short_swa": 1, "denseformer": 3, "mudd": 3}
"""Tensors that cross from two blocks to two more: the stream alone, or what is read over depth too."""

QUICK = [None, "attnres"]
METHODS = [*QUICK, *(pytest.param(m, marks=pytest.mark.matrix) for m in CROSSING if m not in QUICK)]
VOCAB = 40
IDS = tokens(2, 8) % VOCAB


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
             "vocab_size": VOCAB, "num_hidden_layers": 4}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def off_its_start(method: str | None) -> nn.Module:
    model = llama()
    if method is None:
        return model
    new = resfx.rewrite(model, method, args=(IDS,))
    randomise(new)
    return new


def run(stages, *args, **kwargs):
    for stage in stages:
        named = {k: v for k, v in kwargs.items() if not stage.number or k in stage.inputs}
        args = stage(*args, **named)
        args = args if isinstance(args, tuple) else (args,)
    return args[0]


def hold(model: nn.Module, stages, *args, **kwargs) -> None:
    want, got = model(*args, **kwargs)[0], run(stages, *args, **kwargs)
    assert torch.equal(want, got)
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), parameters) for y in (want, got)), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6 * float(a.abs().max()))


@pytest.mark.every(2)
@pytest.mark.parametrize("method", METHODS)
def test_stages_are_the_model(method):
    model = off_its_start(method)
    stages = resfx.split(model, 2, args=(IDS,))
    hold(model, stages, IDS, use_cache=False)
    hold(model, stages, tokens(3, 5) % VOCAB, use_cache=False)
    assert [len(border) for border in stages.borders] == [CROSSING[method]]
    names = [n for stage in stages for n in stage.state_dict()]
    assert sorted(names) == sorted(model.state_dict()), "each stage holds its own under the model's names"
    held = {n: p for stage in stages for n, p in stage.named_parameters()}
    assert all(held[n] is p for n, p in model.named_parameters())


def test_masks_are_made_again_from_arguments_given_by_name():
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    model = llama()
    stages = resfx.split(model, at=["model.layers.1", "model.layers.3"], args=(IDS,), kwargs={"attention_mask": mask})
    assert [s.inputs for s in stages[1:]] == [["attention_mask"], ["attention_mask"]]
    hold(model, stages, IDS, attention_mask=mask, use_cache=False)
    sent = stages[0](IDS, attention_mask=mask)
    given = {"attention_mask": mask, "input_ids": IDS}  # a schedule gives all named arguments to all stages
    assert torch.equal(stages[1](sent, **given), stages[1](sent, attention_mask=mask))
    with pytest.raises(VariantError, match="by name attention_mask"):
        stages[1](sent)
    with pytest.raises(TypeError, match="attention_maks"):
        stages[1](sent, attention_mask=mask, attention_maks=mask)
    with pytest.raises(VariantError, match="another argument 'use_cache'"):
        stages[0](IDS, attention_mask=mask, use_cache=True)


@pytest.mark.matrix
def test_encoder_and_decoder():
    torch.manual_seed(0)
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=VOCAB, dropout_rate=0.0,
                      decoder_start_token_id=0, tie_word_embeddings=False)  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    given = {"input_ids": IDS, "decoder_input_ids": tokens(2, 5) % VOCAB}
    new = resfx.rewrite(model, "ddl", kwargs=given)
    randomise(new)
    with pytest.warns(UserWarning, match="is one parameter|are one parameter"):
        stages = resfx.split(new, 2, kwargs=given)
    hold(new, stages, **given, use_cache=False)


class Drops(nn.Module):
    """A block with dropout and a scale that no gradient goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.drop = nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x):
        with torch.no_grad():
            scale = x.abs().mean(-1, keepdim=True) + 1
        return x + self.drop(self.linear(self.norm(x))) / scale


def test_ones_own_model_in_training():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    model = resfx.rewrite(nn.Sequential(Drops(), Drops(), Drops()), "ddl", args=(x,)).train()
    randomise(model)
    stages = resfx.split(model, 3, args=(x,))
    assert stages.starts == ["1", "2"]
    found = []
    for call in (model, lambda x: run(stages, x)):
        torch.manual_seed(1)
        y = call(x)
        found.append([y, *torch.autograd.grad(y.sum(), model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(copy.deepcopy(stages[0]).eval()(x), model.eval()[0](x))


def test_refusals():
    x = torch.randn(2, 3, 8)
    model = nn.Sequential(Drops(), Drops(), Drops())
    with pytest.raises(OptionError, match="into 9 stages"):
        resfx.split(model, 9, args=(x,))
    with pytest.raises(OptionError, match="into None stages"):
        resfx.split(model, args=(x,))
    with pytest.raises(VariantError, match="no call of that name"):
        resfx.split(model, at=["4"], args=(x,))
    with pytest.raises(VariantError, match="another order"):
        resfx.split(model, at=["2", "1"], args=(x,))
    with pytest.raises(InputError, match="no inputs"):
        resfx.split(nn.Sequential(nn.Linear(4, 4)), 1)
    stages = resfx.split(model, 2, args=(x,))
    with pytest.raises(VariantError, match="type or device"):
        stages[1](x.double())
    with pytest.raises(VariantError, match="takes 1 tensors"):
        stages[1]()
    with pytest.raises(VariantError, match="sizes"):
        stages[1](torch.randn(2, 3, 9))


def test_tied_weights_are_named():
    with pytest.warns(UserWarning, match=r"wte.weight of stage 0 and head.weight of stage 1 are one parameter"):
        resfx.split(NanoGPT().eval(), 2, args=(IDS,))


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
def test_a_tensor_that_the_model_holds_in_a_dict(mode):
    class Net(small.Net):
        def __init__(self):
            super().__init__()
            self.table = {"gain": torch.tensor(2.0)}

        def forward(self, x):
            return self.out(self.body(self.inp(x)) * self.table["gain"])

    x = small.batch()
    new = resfx.rewrite(small.net(Net), mode, args=(x,))
    new.table["gain"] = torch.tensor(3.0)
    value = (x,)
    for stage in resfx.split(new, 2, args=(x,)):
        value = stage(*value) if isinstance(value, tuple) else stage(value)
    assert torch.equal(value, new(x))
