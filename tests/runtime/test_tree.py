"""A rewritten model is a tree of the user's own modules: what is done to one afterwards acts as on the original."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hosts import tokens
from hosts.made import randomise, recompute_activations, rewritten
from hosts.small import at_once
from torch import nn

import resfx

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.act, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.gain = 1.0

    def forward(self, x):
        return x + self.gain * self.down(self.act(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.blocks, self.out = nn.Linear(8, 8), nn.ModuleList(Block() for _ in range(2)), nn.Linear(8, 8)

    def body(self, x):
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x):
        return self.out(self.body(x))


def pair(mode="ddl", cls=Net):
    """An original and a rewritten copy that share nothing."""
    torch.manual_seed(0)
    model = cls().eval()
    return copy.deepcopy(model), copy.deepcopy(resfx.rewrite(model, mode, args=(X,)))


CHANGES = {
    "another activation": lambda m: setattr(m.blocks[0], "act", nn.ReLU()),
    "another layer": lambda m: setattr(m.blocks[1], "up", nn.Linear(8, 16)),
    "a block less": lambda m: m.blocks.pop(1),
    "a block more": lambda m: m.blocks.append(nn.Linear(8, 8)),
    "eps of a norm": lambda m: setattr(m.blocks[0].norm, "eps", 0.5),
    "a plain attribute that the block's own code reads": lambda m: setattr(m.blocks[0], "gain", 0.5),
    "a hook that changes an output": lambda m: m.blocks[0].register_forward_hook(lambda mod, given, out: out * 2),
    "a hook that changes an input": lambda m: m.blocks[1].up.register_forward_pre_hook(lambda mod, given: given[0] * 2),
    "a parametrization": lambda m: nn.utils.parametrizations.weight_norm(m.blocks[0].down),
    "a forward of one's own": lambda m: setattr(m.blocks[0], "forward", lambda x: x * 3),
}


@pytest.mark.every(2)
@pytest.mark.parametrize("mode", ["ddl", "mhc", "attnres"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_acts(what, mode):
    if mode != "ddl" and what in ("a block less", "a block more", "a forward of one's own"):
        pytest.skip("the stream is rewritten as a whole: test_a_missing_block_is_refused")
    before, new = pair(mode)
    for model in (before, new):
        model(X)
        torch.manual_seed(3)
        CHANGES[what](model)
    assert torch.equal(before(X), new(X))


def test_a_missing_block_is_refused():
    _, new = pair("attnres")
    del new.blocks[1]
    with pytest.raises((resfx.errors.ResfxError, IndexError)):
        new(X)


def test_hooks_see_what_they_would_see():
    seen = {}
    for name, model in zip(("before", "new"), pair(), strict=True):
        calls = seen[name] = []
        for inner in (model.blocks[0], model.blocks[0].up, model.out):
            inner.register_forward_hook(lambda mod, given, out, c=calls: c.append((given[0].detach(), out.detach())))
            inner.register_full_backward_hook(lambda mod, given, out, c=calls: c.append((given[0], out[0])))
        model(X).square().sum().backward()
    assert len(seen["before"]) == len(seen["new"]) == 6
    for a, b in zip(seen["before"], seen["new"], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_gradients_are_the_originals_bit_for_bit():
    model, new, inputs = rewritten("llama")
    grads = []
    for m in (model, copy.deepcopy(new)):
        m.zero_grad()
        m(**inputs, labels=inputs["input_ids"]).loss.backward()
        grads.append({n: p.grad for n, p in m.named_parameters() if not n.startswith("resfx.") and p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and all(torch.equal(g, grads[1][n]) for n, g in grads[0].items())


def test_methods_beside_forward_run_the_rewritten_adds():
    _, new = pair()
    randomise(new, 0.5)
    assert torch.equal(new.out(new.body(X)), new(X))
    assert not torch.equal(new.body(X), pair()[0].body(X))


def test_switched_off_undone_and_counted():
    before, new = pair()
    randomise(new, 0.5)
    assert not torch.equal(before(X), new(X))
    with resfx.disabled(new):
        assert torch.equal(before(X), new(X))
    assert not torch.equal(before(X), new(X))
    again = resfx.original(new)
    assert type(again) is Net and torch.equal(before(X), again(X))
    assert not any(n.startswith("resfx") for n, _ in again.named_modules())
    counts = resfx.trainable(resfx.freeze_original(new))
    assert counts["original_trainable"] == 0 and counts["new"] == counts["new_trainable"] > 0
    with pytest.raises(resfx.errors.ResfxError, match="rewritten"):
        resfx.original(nn.Linear(1, 1))


@pytest.mark.parametrize("name", ["report", "variants", "new_parameters", "blocks"])
def test_names_of_the_users_own(name):
    class Own(Net):
        def __init__(self):
            super().__init__()
            if name != "blocks":
                self.add_module(name, nn.Linear(8, 8))

        def forward(self, x):
            return (getattr(self, name) if name != "blocks" else self.out)(super().forward(x))

    before, new = pair(cls=Own)
    assert torch.equal(before(X), new(X))
    assert resfx.of(new).report.changed and resfx.of(new).new_parameters()


def test_known_and_unknown_calls_in_threads():
    before, new = pair()
    calls = [torch.randn(rows, 5, 8, generator=torch.Generator().manual_seed(rows)) for rows in (1, 2, 3, 1, 4, 1, 2)]
    want, got = [before(x) for x in calls], {}

    def call(i):
        got[i] = new(calls[i])

    at_once(call, range(len(calls)))
    assert len(got) == len(calls) and all(torch.allclose(w, got[i], atol=1e-6) for i, w in enumerate(want))


@pytest.mark.every(2)
@pytest.mark.parametrize("padded", [False, True])
def test_mixers_learn_of_padding_that_the_first_call_did_not_have(padded):
    """What the rewrite was made with had no mask; a padded call must give each row what it gets alone."""
    _, shared, _ = rewritten("llama", "short_swa")
    new = copy.deepcopy(shared).eval()
    randomise(new, 0.5)
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    if padded:
        ids[0, :2], mask[0, :2] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        both = new(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        alone = new(ids[:1, 2 * padded :], use_cache=False).logits
    assert torch.allclose(both[:1, 2 * padded :], alone, atol=1e-5)


@pytest.mark.parametrize("mode", ["ddl", "denseformer", "hyper_connections"])
def test_gradients_for_each_example_of_a_call_not_seen_before(mode):
    _, new = pair(mode)
    randomise(new, 0.3)
    parameters = dict(new.named_parameters())

    def loss(values, x):
        return torch.func.functional_call(new, values, (x.unsqueeze(0),)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, X)
    for i, x in enumerate(X):
        want = torch.autograd.grad(new(x.unsqueeze(0)).square().sum(), new.inp.weight)[0]
        torch.testing.assert_close(found["inp.weight"][i], want)


def test_a_block_more_is_seen_where_the_stream_is_rewritten_as_a_whole():
    before, new = pair("denseformer")
    for model in (before, new):
        model(X)
        model.blocks.append(copy.deepcopy(before.blocks[0]))
    with pytest.warns(UserWarning, match=r"not there when denseformer was applied: they stay as they are \(blocks\.2"):
        assert torch.equal(before(X), new(X))


def test_a_block_in_another_place_is_refused_by_name():
    _, new = pair("hyper_connections")
    new.blocks[1] = new.blocks[0]
    with pytest.raises(resfx.errors.VariantError, match=r"runs with hyper_connections.*the place has none"):
        new(X)


class Around(nn.Module):
    """What recomputes, compiles or shards a block: it stands in its place and knows nothing of it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.every(7)
@pytest.mark.parametrize("mode", ["ddl", "attnres", "hyper_connections", "canon"])
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
def test_a_call_not_seen_before_of_blocks_that_were_wrapped_since(mode, layers):
    _, new = pair(mode) if mode != "canon" else rewritten("llama", mode)[:2]
    new = copy.deepcopy(new)
    randomise(new)
    blocks, x = (new.model.layers, tokens(1, 5)) if mode == "canon" else (new.blocks, X[:1])
    want = copy.deepcopy(new)(x)
    for i in layers:
        blocks[i] = Around(Around(blocks[i]))
    got = new(x)
    assert torch.equal(got.logits, want.logits) if mode == "canon" else torch.equal(got, want)
    assert all(type(blocks[i].inner) is Around for i in layers)


@pytest.mark.parametrize(
    "mode", ["attnres", *(pytest.param(m, marks=pytest.mark.matrix) for m in ("ddl", "mhc", "short_swa"))]
)
def test_a_model_collects_its_hidden_states_and_takes_embeddings(mode):
    model, new, inputs = rewritten("llama", mode)
    want = model(**inputs, output_hidden_states=True).hidden_states
    got = new(**inputs, output_hidden_states=True).hidden_states
    assert len(want) == len(got) > 2 and all(map(torch.equal, want, got))
    embedded = {
        **inputs,
        "input_ids": None,
        "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach(),
    }
    assert torch.equal(model(**embedded).logits, new(**embedded).logits)


class Mixed(nn.Module):
    """Computes with the hidden states that the model in it collects."""

    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, nn.Linear(model.config.hidden_size, 3)

    def forward(self, ids):
        states = self.model(ids, output_hidden_states=True).hidden_states
        return self.head(states[1] + states[-1])


def test_a_model_that_has_collected_hidden_states_before_does_so_again():
    model, ids = Mixed(copy.deepcopy(rewritten("llama")[0].model)).eval(), tokens(2, 5)
    want = model(ids)
    assert torch.equal(resfx.rewrite(model, "ddl", args=(ids,))(ids), want)


def test_a_first_call_that_recomputes_its_activations():
    model, shared, inputs = rewritten("llama")
    call = {**inputs, "use_cache": False, "labels": inputs["input_ids"]}
    new = copy.deepcopy(shared).train()
    recompute_activations(new)
    new(**call).loss.backward()
    model.train(), model.zero_grad()
    model(**call).loss.backward()
    model.eval()
    assert all(torch.equal(p.grad, new.get_parameter(n).grad) for n, p in model.named_parameters())


@pytest.mark.every(4)
@pytest.mark.parametrize("mode", ["ddl", "attnres", "mhc", "short_swa"])
def test_a_model_built_on_meta_is_initialised_by_its_host(mode):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 89, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    ids = tokens(2, 9)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
        new = resfx.rewrite(model, mode, args=(ids.to("meta"),), check=False)
    new.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.fill_(float("nan"))
    new.init_weights()
    assert not any(p.isnan().any() for p in new.parameters())
    assert torch.equal(new(ids).logits, resfx.original(new)(ids).logits), "at its start it is the host"


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), resfx.original])
def test_a_copy_of_a_compiled_model_runs_itself(copied):
    _, new = pair()
    new.compile(backend="eager")
    new.blocks[0].compile(backend="eager")
    twin = copied(new)
    if copied is copy.copy:  # a plain module's shares its table of submodules, too
        twin.__dict__["_modules"] = dict(vars(twin)["_modules"])
    twin.out = nn.Linear(8, 8)
    assert torch.equal(twin(X), twin.out(twin.body(X)))
    assert torch.equal(new(X), new.out(new.body(X)))


def test_blocks_without_methods_that_overlap():
    before, new = pair()
    randomise(new, 0.5)
    first, second = resfx.disabled(new), resfx.disabled(new)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(before(X), new(X))
    second.__exit__(None, None, None)
    assert not torch.equal(before(X), new(X))


def test_a_class_with_another_forward_by_the_second_rewrite():
    class Changed(Block):
        def forward(self, x):
            return super().forward(x)

    model = lambda: nn.Sequential(Changed(), Changed())
    resfx.rewrite(model(), "ddl", args=(X,))
    Changed.forward = lambda self, h, scale=1.0: h + scale * self.down(self.up(h))
    other = model()
    assert torch.equal(other(X), resfx.rewrite(other, "ddl", args=(X,))(X))


def test_arguments_with_names_of_generated_code():
    class Named(Block):
        def forward(self, new, handed=None):
            return new + self.down(self.up(new))

    model = nn.Sequential(Named(), Named())
    assert torch.equal(model(X), resfx.rewrite(model, "ddl", args=(X,))(X))
