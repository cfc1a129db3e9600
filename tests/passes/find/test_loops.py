"""Layers that run several times a call: an add, and a module of its own, for each run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import resfx
from resfx.passes.find import reasons

D = 8


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2, self.a, self.b, self.c = nn.LayerNorm(D), nn.LayerNorm(D), *(nn.Linear(D, D) for _ in "abc")

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.a(self.n1(x)))
        return x + self.c(torch.relu(self.b(self.n2(x))))


class Looped(nn.Module):
    """``how``: what enters each run beside the state."""

    def __init__(self, how: str = "plain", runs: int = 3) -> None:
        super().__init__()
        self.how, self.runs = how, runs
        self.stem, self.layer, self.last, self.head = nn.Linear(D, D), Layer(), nn.LayerNorm(D), nn.Linear(D, 3)
        self.steps, self.start = nn.Embedding(runs, D), nn.Parameter(torch.randn(1, 1, D))

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        x = self.start.expand_as(first) if self.how == "from a learned state" else first
        for i in range(self.runs):
            match self.how:
                case "steps":
                    x = x + self.steps.weight[i]
                case "first state again" if i:
                    x = x + first
                case "first state again, normed" if i:
                    x = self.last(x) + first
                case "from a learned state":
                    x = x + first
            x = self.layer(x)
        return self.head(self.last(x))


class TwoStates(nn.Module):
    """Each of two states is what the layer of the other one reads, and goes on beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.slow, self.fast, self.head = nn.Linear(D, D), Layer(), Layer(), nn.Linear(D, 3)
        self.second = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        slow, fast = self.stem(x), self.second(x)
        for _ in range(2):
            fast = self.fast(fast + slow)
            fast = self.fast(fast + slow)
            slow = self.slow(slow + fast)
        return self.head(slow)


HOWS = ["plain", "steps", "first state again", "first state again, normed", "from a learned state"]


@pytest.mark.parametrize("how", HOWS)
def test_every_run_has_its_adds(how: str) -> None:
    model, x = Looped(how).eval(), torch.randn(2, 5, D)
    report = resfx.scan(model, (x,))
    assert [s.owner for s in report.sites] == ["layer"] * 6, report
    assert [s.order for s in report.sites] == list(range(6))
    assert ("its layers run up to 3 times a call" in str(report)) == (how != "from a learned state")
    if "again" in how:
        assert reasons.REINJECTED in {s.reason for s in report.skips}


def test_a_module_for_every_run_and_an_exact_start() -> None:
    model, x = Looped().eval(), torch.randn(2, 5, D)
    new = resfx.rewrite(model, "ddl", (x,))
    assert torch.equal(new(x), model(x))
    banks = [name for name in new.report.new_parameters if name.endswith(".mix")]
    assert len(banks) == 6
    with torch.no_grad():  # one run's module acts at that run alone
        new.get_parameter(banks[-1]).add_(1.0)
    seen = [new.get_parameter(name) for name in banks]
    assert sum(bool((a != seen[0]).any()) for a in seen) == 1
    assert not torch.equal(new(x), model(x))


def test_two_states_that_feed_one_another() -> None:
    model, x = TwoStates().eval(), torch.randn(2, 5, D)
    report = resfx.scan(model, (x,))
    assert [s.owner for s in report.sites] == ["fast"] * 4 + ["slow"] * 2 + ["fast"] * 4 + ["slow"] * 2, report
    assert torch.equal(resfx.rewrite(model, "ddl", (x,))(x), model(x))
