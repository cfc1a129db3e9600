"""What a call replaces while it runs, and reads as it was before: by itself, in rewritten code, it is too late then."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import BY_NAME
from hosts.generation import given_cache
from torch import nn

import resfx
from resfx.errors import CheckError, VariantError
from resfx.passes.capture.marking import watch

MODES = pytest.mark.parametrize("mode", ["ddl", "attnres", "mhc"])


class Layer(nn.Module):
    """Leaves the mean of what it gave, as a plain attribute or as a buffer."""

    def __init__(self, buffer: bool):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        if buffer:
            self.register_buffer("state", torch.zeros(1, 1, 8))
        else:
            self.state = torch.zeros(1, 1, 8)

    def forward(self, x):
        x = x + self.linear(self.norm(x))
        self.state = x.mean((0, 1), keepdim=True).detach()
        return x


class Net(nn.Module):
    """Reads the state of its first layer before that runs, and computes with it at the end."""

    def __init__(self, buffer: bool = False):
        super().__init__()
        self.first, self.second, self.last = Layer(buffer), Layer(buffer), nn.Linear(8, 8)

    def forward(self, x):
        before = self.first.state
        x = self.second(self.first(x))
        return (x + self.last(x)) * (1 + before) + self.first.state


@MODES
@pytest.mark.parametrize("buffer", [False, True])
def test_state_of_modules(mode, buffer):
    model = Net(buffer)
    new = copy.deepcopy(resfx.rewrite(model, mode, args=(torch.randn(2, 5, 8),)))
    for x in torch.randn(3, 2, 5, 8):
        assert torch.equal(new(x), model(x))
        assert torch.equal(new.first.state, model.first.state)
        assert torch.equal(new.second.state, model.second.state)


def test_the_check_sees_state_that_is_left_behind(monkeypatch):
    monkeypatch.setattr(watch.Watch, "wrote", lambda *_: None)
    with pytest.raises(CheckError, match="does not start where the original stands"):
        resfx.rewrite(Net(), "ddl", args=(torch.randn(2, 5, 8),))


def test_two_names_of_one_tensor_are_refused():
    model = Net()
    model.second.state = model.first.state
    with pytest.raises(VariantError, match=r"one tensor of which the call replaces first\.state"):
        resfx.rewrite(model, "attnres", args=(torch.randn(2, 5, 8),))


@pytest.mark.parametrize("mode", ["attnres", "canon"])
def test_values_of_a_cache(mode):
    plain = BY_NAME["llama"].make().model

    class Looking(type(plain)):
        def forward(self, input_ids=None, kept=None, **kwargs):
            seen = 0 if kept is None else kept.get_seq_length()
            before = kept.layers[0].values if seen else None
            out = super().forward(input_ids=input_ids, **given_cache(plain, kept), **kwargs)
            if before is not None:
                out.last_hidden_state = out.last_hidden_state + before.sum((1, 2, 3))[:, None, None] + seen
            return out

    model = Looking(plain.config).eval()
    ids = torch.randint(3, 60, (2, 7))
    new = resfx.rewrite(model, mode, args=(ids,))
    with torch.no_grad():
        want, got = model(ids, use_cache=True), new(ids, use_cache=True)
        for part in torch.randint(3, 60, (2, 2, 2)):
            want, got = (m(part, kept=o.past_key_values) for m, o in ((model, want), (new, got)))
            assert torch.equal(want.last_hidden_state, got.last_hidden_state)


def test_modules_stay_calls_where_their_code_reads_the_length_of_a_cache():
    model = BY_NAME["gpt2"].make().eval()
    ids = torch.randint(3, 60, (2, 7))
    new = resfx.rewrite(model, "canon", args=(ids,))
    called = []
    new.transformer.register_forward_hook(lambda *_: called.append(1))
    made = new.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(made, model.generate(ids, max_new_tokens=4, do_sample=False))
    assert len(called) == 4
