"""Attributes that generated code depends on: each is looked up once a call, through what is wrapped around modules."""

from __future__ import annotations

import pytest
from torch import nn

from resfx.passes.fold.guard import Attribute


class Config:
    """Counts what is read of it."""

    def __init__(self):
        self.alpha, self.beta, self.asked = 1, None, []

    def __getattribute__(self, name):
        if name in ("alpha", "beta"):
            self.asked.append(name)
        return super().__getattribute__(name)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.scale = config, 0.5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = Config()
        self.layers = nn.ModuleList(Block(self.config) for _ in range(2))
        self.layers.width = 8

    @property
    def settings(self):
        self.asked = self.asked + 1 if "asked" in vars(self) else 1
        return self.config


def tree():
    reads = [(("layers", str(i), "scale"), 0.5) for i in range(2)]
    reads += [(("settings", "alpha"), 1), (("settings", "beta"), None), (("layers", "width"), 8), (("gone", "x"), None)]
    return Attribute.tree(reads, [(("config",), Config, ("config",))], [(("layers",), ("0", "1"))], [])


def test_nothing_changed_and_each_is_read_once():
    net = Net()
    assert tree().changed(net) is None
    assert net.asked == 1
    assert net.config.asked == ["alpha", "beta"]


CHANGES = {
    ("layers", "1", "scale"): lambda net: setattr(net.layers[1], "scale", 0.25),
    ("settings", "alpha"): lambda net: setattr(net.config, "alpha", 1.0),  # equal, of another type
    ("settings", "beta"): lambda net: setattr(net.config, "beta", 0),
    ("layers", "width"): lambda net: setattr(net.layers, "width", 9),
    ("gone", "x"): lambda net: setattr(net, "gone", type("Found", (), {"x": 1})),
    ("config",): lambda net: setattr(net, "config", type("Other", (Config,), {})()),
    ("layers",): lambda net: net.layers.append(nn.Identity()),
}


@pytest.mark.parametrize("way", CHANGES, ids=".".join)
def test_a_change_is_told_by_its_way(way):
    net = Net()
    CHANGES[way](net)
    assert tree().changed(net) == way


def test_a_wrapped_block_is_read_through():
    net = Net()
    net.layers[1] = nn.Sequential(net.layers[1])
    assert tree().changed(net) is None
    net.layers[1][0].scale = 1.0
    assert tree().changed(net) == ("layers", "1", "scale")


def test_a_wrapped_list_is_another_list():
    net = Net()
    net.layers = nn.ModuleDict({"all": net.layers})
    assert tree().changed(net) == ("layers",)
