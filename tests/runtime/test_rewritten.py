"""The module handed back: variants, generation, copies, moves, compile, and the user's own class."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from hosts import BY_NAME, HOSTS, tokens
from hosts.generation import given_cache
from hosts.made import randomise, rewritten

import resfx
from resfx.errors import VariantError

CAUSAL = [h.name for h in HOSTS if h.causal]


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "name", [n if n in ("llama", "falcon") else pytest.param(n, marks=pytest.mark.matrix) for n in CAUSAL]
)
def test_generate_gives_the_same_tokens_with_its_cache(name):
    model, new, _ = rewritten(name)
    ids = tokens(2, 6)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    want = model.generate(ids, **options)
    assert torch.equal(want, new.generate(ids, **options))
    captured = len(new.variants)
    longer = tokens(3, 9)
    options["attention_mask"] = torch.ones_like(longer)
    assert torch.equal(model.generate(longer, **options), new.generate(longer, **options))
    if name != "gemma2":  # its sliding cache is another program before and after it is full
        assert len(new.variants) == captured, "another batch and prompt length reuse the graphs"


def test_generate_after_training_agrees_with_and_without_cache():
    new = copy.deepcopy(rewritten("llama")[1])
    randomise(new, 0.5)
    ids = tokens(2, 6)
    options = {"max_new_tokens": 10, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    cached = new.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, new.generate(ids, use_cache=False, **options))
    assert not torch.equal(cached, rewritten("llama")[0].generate(ids, **options))


def test_beam_search_and_left_padding():
    model, new, _ = rewritten("gpt2")
    ids = tokens(3, 6)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "num_beams": 3, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), new.generate(ids, **options))


def test_the_cache_passed_in_is_updated_in_place():
    from transformers import DynamicCache

    model, new, _ = rewritten("llama")
    ids = tokens(2, 6)
    caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
    a, b = model(ids, **given_cache(model, caches[0])), new(ids, **given_cache(new, caches[1]))
    assert b.past_key_values is caches[1]
    assert caches[1].get_seq_length() == 6
    a, b = model(ids[:, :1], **given_cache(model, caches[0])), new(ids[:, :1], **given_cache(new, caches[1]))
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(caches[0].layers[1].keys, caches[1].layers[1].keys)


def test_labels_masks_and_positional_arguments_each_get_their_graph():
    model, new, _ = rewritten("gpt2")
    ids = tokens(2, 8)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    for kwargs in ({"labels": ids}, {"attention_mask": mask}, {"attention_mask": mask, "labels": ids},
                   {"output_hidden_states": True}, {"return_dict": False}):  # fmt: skip
        a, b = model(ids, use_cache=False, **kwargs), new(ids, use_cache=False, **kwargs)
        assert type(a) is type(b)
        want, got = (torch.utils._pytree.tree_leaves(o) for o in (a, b))
        assert len(want) == len(got)
        assert all(torch.equal(x, y) for x, y in zip(want, got, strict=True))
    embedded = model.transformer.wte(ids).detach()
    want, got = (m(inputs_embeds=embedded, use_cache=False).logits for m in (model, new))
    assert torch.equal(want, got)


def test_an_example_that_is_a_view_serves_calls_that_are_not():
    ids = tokens(4, 9)
    new = resfx.rewrite(BY_NAME["nanogpt"].make(), "ddl", kwargs={"idx": ids[:2, :-1], "targets": ids[:2, 1:]})
    before, other = new.variants, tokens(3, 5)
    assert torch.isfinite(new(idx=other, targets=other)[1])
    assert torch.isfinite(new(idx=other[:, :-1], targets=other[:, :-1])[1])
    assert new.variants == before == ["blocks.0: 1", "blocks.1: 1"]


def test_a_batch_of_one_is_its_own_capture_and_right():
    model, new, _ = rewritten("llama")
    ids = tokens(1, 1)
    assert torch.equal(model(ids, use_cache=False).logits, new(ids, use_cache=False).logits)


def test_signature_and_class_are_the_users():
    model, new, _ = rewritten("gpt2")
    assert inspect.signature(new.forward) == inspect.signature(model.forward)
    assert isinstance(new, type(model))
    for wrong in (new, model):
        with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
            wrong(no_such_argument=1)
    for wrong in rewritten("nanogpt")[:2]:
        with pytest.raises(TypeError, match=r"NanoGPT.forward\(\) got an unexpected keyword argument"):
            wrong(no_such_argument=1)


def test_frozen_submodules_make_their_own_variant():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 8)

        def forward(self, x):
            return x + torch.relu(self.fc(self.norm(x)))

    net, x = Net(), torch.randn(6, 8)
    new = resfx.rewrite(net, args=(x,))
    for mode in ("train", "frozen", "eval"):
        for module in (net, new):
            module.train(mode != "eval")
            if mode == "frozen":
                module.norm.eval()
        assert torch.equal(net(x), new(x)), mode
    assert torch.equal(net.norm.running_mean, new.norm.running_mean)


def test_training_keeps_the_originals_buffers():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(8))
    before = net[0].running_mean.clone()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.fc = net[0], torch.nn.Linear(8, 8)

        def forward(self, x):
            return x + self.fc(self.bn(x)).relu()

    new = resfx.rewrite(Net(), args=(torch.randn(6, 8),)).train()
    new(torch.randn(6, 8) + 3)
    assert not torch.equal(new.bn.running_mean, before)
    assert torch.equal(net[0].running_mean, before)


def test_a_wrapper_that_hands_on_attributes_is_copied_as_a_wrapper():
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

    _, new, _ = rewritten("nanogpt")
    twin = copy.deepcopy(Wrapper(new))
    assert type(twin) is Wrapper and type(twin.inner) is type(new) and twin.inner is not new
    assert type(copy.deepcopy(torch.compile(new, backend="eager"))) is type(torch.compile(new, backend="eager"))


def test_deepcopy_is_independent_and_shares_the_graphs():
    _, new, inputs = rewritten("bert")
    twin = copy.deepcopy(new)
    randomise(twin, 0.5)
    captured = len(twin.variants)
    assert not torch.equal(twin(**inputs).logits, new(**inputs).logits)
    assert len(twin.variants) == captured
    with torch.no_grad():
        twin.bert.embeddings.word_embeddings.weight.zero_()
    assert new.bert.embeddings.word_embeddings.weight.abs().max() > 0


def test_moving_types_leaves_the_original_and_recaptures():
    model = BY_NAME["llama"].make()
    inputs = BY_NAME["llama"].inputs(2, 7)
    new = resfx.rewrite(model, kwargs=inputs)
    new.to(torch.bfloat16)
    assert new(**inputs).logits.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    reference = copy.deepcopy(model).to(torch.bfloat16)
    assert torch.equal(new(**inputs).logits, reference(**inputs).logits)
    new.double()
    assert new(**inputs).logits.dtype == torch.float64


def test_autocast_is_part_of_the_variant():
    model, new, inputs = rewritten("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(**inputs).logits, new(**inputs).logits)
    assert torch.equal(model(**inputs).logits, new(**inputs).logits)


def test_functional_call_and_assigned_parameters_reach_the_graph():
    _, new, inputs = rewritten("gpt2")
    zero = {"lm_head.weight": torch.zeros_like(new.lm_head.weight)}
    assert not torch.func.functional_call(new, zero, (), inputs).logits.any()
    twin = copy.deepcopy(new)
    twin.load_state_dict({k: torch.zeros_like(v) for k, v in twin.state_dict().items()}, assign=True)
    assert not twin(**inputs).logits.any()


def test_no_grad_regions_do_not_leak():
    _, new, inputs = rewritten("llama")
    with torch.no_grad():
        new(**inputs)
        assert not torch.is_grad_enabled()
    assert new(**inputs).logits.requires_grad


@pytest.mark.matrix
@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(n, marks=pytest.mark.matrix) for n in ("gpt2", "bert", "vit", "t5"))]
)
def test_compiles_whole_with_dynamic_sizes(name):
    torch._dynamo.reset()
    host = BY_NAME[name]
    new = copy.deepcopy(rewritten(name)[1])
    randomise(new)
    compiled = torch.compile(new, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch, length in ((2, 7), (3, 5)):
        inputs = host.inputs(batch, length)
        torch.testing.assert_close(compiled(**inputs).logits, new(**inputs).logits, rtol=1e-5, atol=1e-5)
    inputs = host.inputs(2, 7)
    grads = []
    for module in (compiled, new):
        new.zero_grad()
        module(**inputs).logits.square().mean().backward()
        grads.append({n: p.grad.clone() for n, p in new.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for key in grads[0]:
        torch.testing.assert_close(grads[0][key], grads[1][key], rtol=1e-4, atol=1e-6)


@pytest.mark.matrix
def test_inductor_forward_and_backward():
    torch._dynamo.reset()
    new = copy.deepcopy(rewritten("nanogpt")[1])
    randomise(new)
    compiled = torch.compile(new, fullgraph=True)
    ids = tokens(2, 7)
    torch.testing.assert_close(compiled(ids), new(ids), rtol=1e-4, atol=1e-5)
    compiled(ids).square().mean().backward()
    got = {n: p.grad.clone() for n, p in new.named_parameters() if p.grad is not None}
    new.zero_grad()
    new(ids).square().mean().backward()
    for key, parameter in new.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[key], parameter.grad, rtol=1e-3, atol=1e-5)


def test_hugging_face_save_pretrained(tmp_path):
    from safetensors.torch import load_file

    _, new, _ = rewritten("gpt2")
    with pytest.warns(UserWarning, match=r"resfx\.load"):  # a plain from_pretrained has no methods
        new.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "model.safetensors"))
    assert any(k.startswith("resfx.ddl") for k in keys)
    assert '"GPT2LMHeadModel"' in (tmp_path / "config.json").read_text()


def test_a_captured_program_refuses_other_sizes_and_types():
    net = torch.nn.Sequential(Residual(8), Residual(8)).eval()
    program = torch.export.export(net, (torch.randn(4, 8),))
    new = resfx.rewrite(program)
    x = torch.randn(4, 8)
    assert torch.equal(new(x), net(x))
    with pytest.raises(VariantError, match="does not accept"):
        new(torch.randn(5, 8))
    with pytest.raises(VariantError, match="type or device"):
        new.bfloat16()


class Residual(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.fc, self.drop = torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.Dropout(0.2)

    def forward(self, x):
        return x + self.drop(self.fc(self.norm(x)).relu())


def test_sources_other_than_a_module(tmp_path):
    net, x = torch.nn.Sequential(Residual(8), Residual(8)).eval(), torch.randn(4, 8)
    program = torch.export.export(net, (x,))
    torch.export.save(program, tmp_path / "net.pt2")
    sources = [net, torch.fx.symbolic_trace(net), program.module(), program, tmp_path / "net.pt2"]
    for source in sources:
        new = resfx.rewrite(source)
        assert len(new.report.changed) == 2
        assert torch.equal(new(x), net(x))
        randomise(new)
        assert not torch.equal(new(x), net(x))


def test_traced_models_follow_train_and_eval():
    net, x = torch.nn.Sequential(Residual(8), Residual(8)), torch.randn(4, 8)
    new = resfx.rewrite(net)
    for mode in (True, False):
        net.train(mode), new.train(mode)
        torch.manual_seed(5)
        want = net(x)
        torch.manual_seed(5)
        assert torch.equal(want, new(x))
    assert new(torch.randn(2, 3, 8)).shape == (2, 3, 8), "a traced graph has no shapes to guard"


@pytest.mark.every(2)
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_generate_of_an_encoder_decoder_runs_the_rewritten_encoder(name):
    model, shared, inputs = rewritten(name)
    new = copy.deepcopy(shared)
    ids = inputs["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **options), new.generate(ids, **options))
    randomise(new, 1.0)
    encoder = new.get_encoder()
    assert isinstance(encoder, type(model.get_encoder()))
    states = encoder(ids).last_hidden_state
    whole = new(**inputs).encoder_last_hidden_state
    assert torch.equal(states, whole)
    assert not torch.equal(states, model.get_encoder()(ids).last_hidden_state)
    assert not hasattr(rewritten("nanogpt")[1], "get_encoder")


def test_a_submodule_runs_its_rewritten_adds():
    _, shared, inputs = rewritten("llama")
    new = copy.deepcopy(shared)
    randomise(new, 0.5)
    hidden = new.model(inputs["input_ids"], use_cache=False).last_hidden_state
    assert torch.equal(new.lm_head(hidden), new(**inputs).logits)


def test_a_changed_config_is_another_capture():
    new = copy.deepcopy(rewritten("gpt2")[1])
    ids = tokens(2, 7)
    assert new(ids).past_key_values is not None
    new.config.use_cache = False
    assert new(ids).past_key_values is None
    assert rewritten("gpt2")[0].config.use_cache, "the original's config is its own"
