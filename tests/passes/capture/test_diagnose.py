"""A model that cannot be captured: the message names what stands in the way, where, and what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resfx
from resfx.errors import CaptureError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class DataDependent(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + self.f(x)
        return x - self.f(x)


class Numpy(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(torch.from_numpy(np.tanh(x.detach().numpy())))


class Item(Block):
    def forward(self, x: Tensor) -> Tensor:
        rows = int(x.abs().max().item())
        return x + self.f(x)[: len(range(rows)) + 1].sum()


@torch.library.custom_op("zoo_tests::no_fake", mutates_args=())
def _no_fake(x: Tensor) -> Tensor:
    return x.clone()


class MissingFake(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(torch.ops.zoo_tests.no_fake(x))


@pytest.mark.parametrize(
    ("model", "found", "remedy"),
    [
        (DataDependent(), "depends on tensor values", "torch.where"),
        (Numpy(), "numpy", "torch operators"),
        (Item(), r"tensor values|\.item\(\)", "constant"),
        (MissingFake(), "shape function", "register_fake"),
    ],
)  # fmt: skip
def test_the_cause_is_named(model: nn.Module, found: str, remedy: str) -> None:
    with pytest.raises(CaptureError) as error:
        resfx.scan(model, (torch.randn(2, 4),))
    message = str(error.value)
    assert type(model).__name__ in error.value.asked
    assert error.match(found)
    assert remedy in error.value.try_
    assert "test_diagnose.py:" in message  # the user's line


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises((TypeError, CaptureError), match=r"arguments|missing|unexpected"):
        resfx.scan(Block(), (torch.randn(2, 4), 1, 2))
