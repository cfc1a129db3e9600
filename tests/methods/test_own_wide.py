"""A wide method of a user's own, written from the documentation of ``WideStream`` alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hosts import BY_NAME
from hosts.made import randomise
from hosts.unrolled import host
from torch import nn

import resfx
from resfx.methods.base import Method
from resfx.methods.wide.base import Expand, Readout, WideStream


class Read(nn.Module):
    """``x = sum_j softmax(a)_j X_j``, as one channel and differences from it; the first ``X_0``, as all are equal."""

    def __init__(self, n, depth, factory):
        super().__init__()
        self.write = nn.Parameter(torch.empty(n, **factory))
        self.logits = nn.Parameter(torch.empty(n, **factory)) if depth else None
        self.lead = depth % n
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.zeros_(self.write)
        if self.logits is not None:
            nn.init.zeros_(self.logits)
            with torch.no_grad():
                self.logits[self.lead] = 2.0

    def forward(self, state):
        first, write = state[..., 0, :], (1 + self.write).to(state.dtype)
        if self.logits is None:
            return first, write
        weights = self.logits.softmax(0)[:, None].to(state.dtype)
        return first + (weights * (state - first.unsqueeze(-2))).sum(-2), write


class Write(nn.Module):
    """``X_j + b_j f``."""

    def forward(self, state, f, x, c, memo):
        assert x.shape == f.shape and (c is None or c.shape[:-1] == x.shape[:-1])
        return state + memo[:, None] * f.unsqueeze(-2)


@dataclass(frozen=True, kw_only=True)
class Lanes(Method):
    """Channels that never mix."""

    scope = "wide"

    n: int = 3

    def build_stream(self, places):
        factory = {"device": places[0].device, "dtype": places[0].dtype}
        reads = [None if p.parallel else Read(self.n, p.depth, factory) for p in places]
        return WideStream(Expand(self.n), reads, [Write() for _ in places], Readout(self.n, "mean", factory))


@pytest.mark.every(2)
@pytest.mark.parametrize("name", ["gpt_neox", "bert"])  # parallel branches; a norm behind the add
def test_it_starts_exactly_learns_and_follows_its_equations(name):
    model, inputs = host(name, layers=2), BY_NAME[name].inputs(2, 5)
    new = resfx.rewrite(model, Lanes(), kwargs=inputs)
    want = model(**inputs).logits
    assert torch.equal(new(**inputs).logits, want)
    assert len(new.report.changed) == BY_NAME[name].sites
    randomise(new, 0.3)
    got = new(**inputs).logits
    assert (got - want).abs().max() > 1e-3
    got.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in new.new_parameters().values())


def test_its_channels_are_what_the_equations_say():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(2))
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

        def forward(self, x):
            for norm, layer in zip(self.norms, self.layers, strict=True):
                x = x + torch.tanh(layer(norm(x)))
            return x

    model, x = Net().double(), torch.randn(4, 3, 6).double()
    new = resfx.rewrite(model, Lanes(), args=(x,))
    randomise(new, 0.5)
    reads = [m for m in new.modules() if isinstance(m, Read)]
    X = torch.stack([x] * 3)
    for read, norm, layer in zip(reads, model.norms, model.layers, strict=True):
        h = X[0] if read.logits is None else torch.einsum("n,n...->...", read.logits.softmax(0), X)
        X = X + torch.einsum("n,...->n...", 1 + read.write, torch.tanh(layer(norm(h))))
    torch.testing.assert_close(new(x), X.mean(0))


class NoChannels(nn.Module):
    pass


@pytest.mark.parametrize(("parts", "message"), [
    ((NoChannels(), [Write()], [Write()]), "channels"), ((Expand(2), [], []), "each place"),
    ((Expand(2), [Write()], [Write(), Write()]), "2 writes and 1 reads"),
    ((Expand(2), [None], [Write()]), "first place"),
])  # fmt: skip
def test_parts_that_do_not_belong_together(parts, message):
    expand, reads, writes = parts
    with pytest.raises(ValueError, match=message):
        WideStream(expand, reads, writes, NoChannels())
