"""A rewritten model in a pickle: the same tensors, captured again where it is read."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from hosts import BY_NAME, tokens
from hosts.made import randomise
from torch import nn

import resfx
from resfx.errors import SaveError


def test_a_model_in_a_pickle_is_the_same_model():
    host = BY_NAME["gpt2"]  # fresh: transformers leaves hooks that no pickle takes in models asked for hidden states
    new = resfx.rewrite(host.make(), "ddl", kwargs=host.inputs(2, 7), check=False)
    randomise(new)
    new.transformer.h[0].requires_grad_(False)
    new.train().transformer.h[1].eval()
    held, ids = io.BytesIO(), tokens(2, 7)
    torch.save(new, held)
    held.seek(0)
    torch.manual_seed(0)
    other = torch.load(held, weights_only=False)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0))), "numbers were drawn"
    assert [(n, m.training) for n, m in other.named_modules()] == [(n, m.training) for n, m in new.named_modules()]
    want, got = dict(new.named_parameters()), dict(other.named_parameters())
    assert want.keys() == got.keys(), "ties are kept"
    assert all(torch.equal(want[n], got[n]) and want[n].requires_grad == got[n].requires_grad for n in want)
    assert isinstance(other, type(new)._resfx_before)
    new.eval(), other.eval()
    assert torch.equal(new(ids).logits, other(ids).logits)


def test_a_captured_graph_cannot_be_pickled():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return x + self.inner(x)

    new = resfx.rewrite(torch.export.export(Net(), (torch.randn(2, 8),)))
    with pytest.raises(SaveError, match="captured from again"):
        pickle.dumps(new)
