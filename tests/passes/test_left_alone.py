"""Whatever a model's forward does to its own parameters, scan and rewrite leave the user's model as it was."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from hosts.small import Block, Net, batch, net
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import resfx
from resfx._torch import is_watched, pytree
from resfx._torch.tensors import tensor_hooks
from resfx.errors import ResfxError
from resfx.passes.preserve import watched_run
from resfx.passes.tensors import Writes


def scale(weight):
    with torch.no_grad():
        weight.mul_(0.9)


def replace(weight):
    weight.data = torch.ones_like(weight)


def write_beside(weight):
    """Into the old data, once the parameter has other data."""
    old, weight.data = weight.data, weight.data * 2
    old.mul_(0.5)


def step(weight):
    if weight.requires_grad:
        torch.optim.SGD([weight], lr=0.1).zero_grad()
    torch._foreach_mul_([weight.data], 0.5)


DEEDS = {
    "in place": scale, "through data": lambda w: w.data.mul_(0.9), "replaced": replace, "beside": write_beside,
    "many": step, "out": lambda w: torch.mul(w.data, 0.9, out=w.data),
    "through a view": lambda w: w.data.view(-1)[3:].zero_(), "seed": lambda w: torch.manual_seed(5),
    "frozen": lambda w: w.requires_grad_(False), "hook": lambda w: w.requires_grad and w.register_hook(lambda g: g * 2),
    "late hook": lambda w: w.requires_grad and w.register_post_accumulate_grad_hook(lambda p: None),
    "grad": lambda w: setattr(w, "grad", torch.ones_like(w)), "attribute": lambda w: setattr(w, "seen", 1),
    "grad written": lambda w: w.grad is None or w.grad.mul_(2), "log": lambda w: w.log.append(1),
}  # fmt: skip
BREAKING = {"emptied": lambda w: w.set_(), "other type": lambda w: setattr(w, "data", torch.ones(3, 3).double())}


class Doing(Block):
    deed, always = "", True

    def forward(self, x):
        if self.training or self.always:
            (DEEDS | BREAKING)[self.deed](self.up.weight)
        return super().forward(x)


class Does(Net):
    """A block for each deed."""

    def __init__(self, deeds, always):
        super().__init__(blocks=len(deeds))
        for block, deed in zip(self.blocks, deeds, strict=True):
            block.__class__, block.deed, block.always = Doing, deed, always
            block.up.weight.log = []
            block.down.weight.register_hook(lambda g: g)
            block.up.weight.grad = torch.full_like(block.up.weight, 2.0)


def facts(model):
    """All that can be seen of the parameters, with what is held and where."""
    told = {}
    for name, p in model.named_parameters():
        hooks = [(id(h), h and dict(h)) for h in tensor_hooks(p)]
        about = [p.detach(), p.data_ptr(), p.dtype, p.requires_grad, p.is_leaf, id(p.grad), p.grad, vars(p), hooks]
        told[name] = pytree.tree_map(lambda x: x.tolist() if isinstance(x, torch.Tensor) else x, about)
    return told


# Together, and some alone: one that no graph can do, or that makes the model raise, ends the way before the others.
TOGETHER = [tuple(DEEDS), (*DEEDS, "emptied"), ("in place", "other type")]
ALONE = [("in place",), ("grad",), ("log", "attribute", "seed")]


@pytest.mark.parametrize("entry", [resfx.scan, lambda model, x: resfx.rewrite(model, "ddl", x)])
@pytest.mark.parametrize(("deeds", "always"), [
    *((deeds, False) for deeds in TOGETHER), *((deeds, True) for deeds in [*TOGETHER, *ALONE]),
])  # fmt: skip
def test_parameters_are_as_before(deeds, always, entry):
    torch.manual_seed(0)
    model = Does(deeds, always).eval()
    before = facts(model)
    with warnings.catch_warnings(), contextlib.suppress(ResfxError):  # some of this no graph can do
        warnings.simplefilter("ignore")
        entry(model, batch())
    assert facts(model) == before


def test_a_seed_set_in_forward_is_not_left_to_others():
    states = []
    for deed in ("attribute", "seed"):
        model = Does([deed, "attribute"], always=True).eval()
        torch.manual_seed(0)
        resfx.scan(model, batch())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    with pytest.raises(ResfxError, match="seeds torch's random numbers"):
        resfx.rewrite(model, "ddl", batch())
    assert torch.initial_seed() == 0


def test_parameters_are_as_before_where_the_model_raises():
    class Raising(Net):
        def forward(self, x):
            scale(self.inp.weight)
            self.inp.weight.requires_grad_(False)
            raise ValueError("told to")

    model = net(Raising)
    before = facts(model)
    with pytest.raises(ResfxError, match="told to"):
        resfx.rewrite(model, "ddl", batch())
    assert facts(model) == before


class Watched(nn.Module):
    """Runs only where nobody watches, and writes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self):
        self.weight.data.mul_(2)
        if is_watched():
            raise RuntimeError("a mode")
        self.weight.detach().numpy()[0] = 7
        return self.weight.sum().item()


def test_what_cannot_be_watched_is_run_with_a_copy():
    model = Watched()
    written = {}
    assert watched_run(model, contextlib.nullcontext, model, written) == 11
    assert written == {id(model.weight): model.weight} and torch.equal(model.weight, torch.ones(3))


def test_nothing_is_kept_of_what_nobody_writes():
    model = net()
    watch = Writes(model.parameters())
    with watch:
        model(batch())
        model.out.weight.data[0].zero_()
    assert [t is model.out.weight for t, *_ in watch.written.values()] == [True]
    watch.put_back()
    assert torch.equal(model.out.weight, net().out.weight)


@pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore:Dynamo does not know how to trace")
def test_a_model_that_compiles_parts_of_itself_can_be_tried():
    class Attending(Block):
        def forward(self, x):
            heads = self.up(self.norm(x)).unflatten(-1, (2, -1)).transpose(1, 2)
            return x + self.down(flex_attention(heads, heads, heads).transpose(1, 2).flatten(2))

    model = net()
    for i in range(len(model.blocks)):
        model.blocks[i] = Attending()
    with torch.no_grad():
        assert len(resfx.scan(model, batch()).sites) == len(model.blocks)
