"""Results of the user's own modules that are more than tensors: code has them written in, and says when they change."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import BY_NAME, small
from torch import nn
from torch.utils.checkpoint import checkpoint

import resfx

X = small.batch()


class Mlp(nn.Module):
    def __init__(self, aux=False, factor=1.0):
        super().__init__()
        torch.manual_seed(3)
        self.up, self.down, self.aux, self.factor = nn.Linear(8, 16), nn.Linear(16, 8), aux, factor

    def forward(self, x):
        h = self.down(self.up(x).relu())
        return h, (h.square().mean() if self.aux else None), self.factor


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), Mlp()

    def forward(self, x):
        h, aux, factor = self.mlp(self.norm(x))
        return {"x": x + h * factor, "aux": aux, "n": 2}


class Net(small.Net):
    def __init__(self):
        super().__init__(blocks=0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.tower = Tower()

    def forward(self, x):
        total = sum(h.mean() for h in self.tower(x))
        x = self.inp(x)
        for block in self.blocks:
            out = block(x)
            x = out["x"] * out["n"]
            total = total if out["aux"] is None else total + out["aux"]
        return self.out(x), total


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1]).tanh())
        return found


LASTING = {
    "an attribute that gives a tensor for None": lambda m: setattr(m.blocks[1].mlp, "aux", True),
    "an attribute that gives another number": lambda m: setattr(m.blocks[1].mlp, "factor", 3.0),
    "another module": lambda m: setattr(m.blocks[1], "mlp", Mlp(True, 0.5)),
    "a longer list": lambda m: setattr(m.tower, "layers", m.tower.layers[:2]),
}
HOOKS = {
    "a tensor for None": lambda m: m.blocks[1].mlp.register_forward_hook(
        lambda mod, i, o: (o[0], torch.ones(()), o[2])
    ),
    "another number": lambda m: m.blocks[1].register_forward_hook(lambda mod, i, o: {**o, "n": 7}),
    "fewer parts": lambda m: m.tower.register_forward_hook(lambda mod, i, o: o[:1]),
}
MODES = ["ddl", "attnres", "mhc"]


def pair(mode):
    model = small.net(Net)
    return copy.deepcopy(model), copy.deepcopy(resfx.rewrite(model, mode, args=(X,)))


def same(before, new):
    return all(torch.equal(a, b) for a, b in zip(before(X), new(X), strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", LASTING)
def test_a_change_acts_or_says_to_call_again(what, mode):
    before, new = pair(mode)
    assert same(before, new)
    for tree in (before, new):
        LASTING[what](tree)
    try:
        assert same(before, new)
    except resfx.errors.VariantError as error:
        assert "call again" in str(error)
        assert same(before, new)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", HOOKS)
def test_a_hook_acts_or_is_refused(what, mode):
    before, new = pair(mode)
    for tree in (before, new):
        HOOKS[what](tree)
    try:
        assert same(before, new)
    except resfx.errors.VariantError as error:
        assert "another form" in str(error)


@pytest.mark.parametrize("block", [0, 1])
def test_a_stream_of_several_channels_that_a_hook_makes_one(block):
    new = resfx.rewrite(small.net(), "mhc", args=(X,))
    new.blocks[block].register_forward_hook(lambda mod, given, out: given[0] * 2)
    with pytest.raises(resfx.errors.VariantError, match="axes"):
        new(X)


@pytest.mark.parametrize("mode", [*MODES, "short_swa"])
def test_attention_weights_that_another_implementation_gives(mode):
    host = BY_NAME["llama"]
    given = {**host.inputs(2, 7), "output_attentions": True}
    new = resfx.rewrite(host.make(), mode, kwargs=host.inputs(2, 7))
    assert not new(**given).attentions
    new.set_attn_implementation("eager")
    assert len(new(**given).attentions) == len(new.model.layers)


def test_a_block_of_another_class_since():
    class Other(small.Block):
        def forward(self, x):
            return x + self.down(self.up(self.norm(x)))

    before = small.net()
    for mode in MODES:
        new = resfx.rewrite(before, mode, args=(X,))
        for tree in (model := copy.deepcopy(before), new):
            tree.blocks[0].__class__ = Other
        try:
            assert torch.equal(new(X), model(X))
        except resfx.errors.VariantError as error:
            assert "blocks.0" in str(error)


class Checkpointed(small.Net):
    """Calls its blocks as timm does: the list of them, or one after the other."""

    recompute = False

    def __init__(self):
        super().__init__(blocks=0)
        self.blocks = nn.Sequential(*[small.Block() for _ in range(3)])

    def forward(self, x):
        x = self.inp(x)
        if not self.recompute:
            return self.out(self.blocks(x))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.out(x)


@pytest.mark.parametrize("mode", MODES)
def test_a_sequential_whose_parts_are_called_one_by_one_later(mode):
    model = small.net(Checkpointed)
    new = resfx.rewrite(model, mode, args=(X,))
    want = model(X)
    want.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert torch.equal(new(X), want)
    new.recompute = True
    new.zero_grad()
    got = new(X)
    got.sum().backward()
    assert torch.equal(got, want)
    assert all(torch.allclose(p.grad, grads[n], atol=1e-6) for n, p in new.named_parameters() if n in grads)


class Asks(small.Block):
    def forward(self, x):
        with torch.no_grad():  # asks torch itself: that is nobody's question
            scale = torch.ones(())
        h = self.up(self.norm(x))
        if not (self.training and torch.is_grad_enabled()):
            h = self.act(h)
        return x + self.down(h) * scale


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [False, True])
def test_code_that_asks_for_gradients(mode, training):
    class Net(small.Net):
        def __init__(self):
            super().__init__(blocks=0)
            self.blocks = nn.ModuleList(Asks() for _ in range(2))

    model = small.net(Net).train(training)
    new = resfx.rewrite(model, mode, args=(X,))
    for enabled in (True, False, True):
        with torch.set_grad_enabled(enabled):
            assert torch.equal(new(X), model(X))
    assert len(resfx.of(new).variants) <= 4  # two for each block


@pytest.mark.parametrize("mode", ["ddl", "attnres"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_tokens_of_a_model_that_is_being_trained_with_checkpoints(mode):
    host = BY_NAME["llama"]
    given = host.inputs(2, 7)
    model = host.make()
    new = resfx.rewrite(model, mode, kwargs=given)
    tokens = []
    for tree in (model, new):
        tree.gradient_checkpointing_enable({"use_reentrant": False})
        tree.train()
        tokens.append(tree.generate(given["input_ids"], max_new_tokens=5, min_new_tokens=5, do_sample=False))
    assert torch.equal(*tokens)
