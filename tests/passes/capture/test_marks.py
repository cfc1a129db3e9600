"""The marks that calls leave in a graph are told from whatever operators a model has itself."""

import pytest
import torch
from torch import nn

import resfx

IDENTITIES = {
    "ellipsis": lambda x: x[...],
    "whole slice": lambda x: x[:],
    "alias": torch.ops.aten.alias,
    "view": lambda x: x.view(x.shape),
    "squeeze": lambda x: x.squeeze(0).unsqueeze(0) if x.shape[0] == 1 else x.squeeze(-1),
    "squeeze of an axis that stays": lambda x: x.squeeze((1, 2)),
    "expand": lambda x: x.expand_as(x),
    "narrow": lambda x: x.narrow(-1, 0, x.shape[-1]),
    "contiguous": torch.Tensor.contiguous,
}


class Block(nn.Module):
    def __init__(self, identity):
        super().__init__()
        self.identity = identity
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return self.identity(x) + self.identity(self.linear(self.norm(self.identity(x))))


class Net(nn.Module):
    def __init__(self, identity):
        super().__init__()
        self.blocks = nn.ModuleList(Block(identity) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x[...]


@pytest.mark.every(4)
@pytest.mark.parametrize("mode", ["ddl", "mhc", "attnres"])
@pytest.mark.parametrize("name", IDENTITIES)
def test_a_model_that_does_nothing_in_some_way(name, mode):
    torch.manual_seed(0)
    net, x = Net(IDENTITIES[name]), torch.randn(2, 5, 8)
    new = resfx.rewrite(net, mode, args=(x,))
    assert torch.equal(new(x), net(x))
    assert torch.equal(new(x[:, :4]), net(x[:, :4]))
