"""Two results side by side: NaN-aware, deaf to what a mixer adds to a cache, and to nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from resfx.passes.check.values import OtherForm, difference, pairs, rounded, same

NAN, INF = float("nan"), float("inf")


class Cache:
    def __init__(self, *layers, count=1):
        self.layers, self.count = list(layers), count


@pytest.mark.parametrize(("a", "b", "equal", "apart"), [
    ([1.0, NAN], [1.0, NAN], True, 0.0), ([1.0, NAN], [1.0, 0.0], False, INF), ([1.0, 0.0], [1.0, NAN], False, INF),
    ([1.0, INF], [1.0, INF], True, 0.0), ([INF], [-INF], False, INF), ([1.0], [1.5], False, 0.5), ([], [], True, 0.0),
])  # fmt: skip
def test_equality_and_distance(a, b, equal, apart):
    a, b = torch.tensor(a), torch.tensor(b)
    assert same(a, b) is equal
    assert difference(a, b) == apart or math.isclose(difference(a, b), apart)


def test_other_kinds_of_tensors():
    assert same(torch.tensor([1, 2]), torch.tensor([1, 2])) and not same(torch.ones(2), torch.ones(2).double())
    assert not same(torch.ones(2), torch.ones(2, 1)) and difference(torch.ones(2), torch.ones(3)) == INF
    assert difference(torch.tensor([1 + 1j]), torch.tensor([1 - 1j])) == 2.0
    assert rounded(torch.tensor([1e3]), torch.tensor([1e3 + 1e-3]), 64)
    assert not rounded(torch.tensor([1e3]), torch.tensor([1e3 + 1e-1]), 64)


def test_what_the_first_has_is_found_in_the_second():
    x, y = torch.zeros(1), torch.ones(1)
    want = {"logits": x, "cache": Cache(y), "loss": None}
    got = {"logits": x, "cache": Cache(y, Cache(torch.ones(3))), "loss": None}
    assert [(a is b) for a, b in pairs(want, got)] == [True, True]
    nan = Cache(count=NAN)
    assert pairs(nan, Cache(count=NAN)) == []


@pytest.mark.parametrize(("want", "got"), [
    ((torch.zeros(1),), (torch.zeros(1), torch.zeros(1))), ((torch.zeros(1), None), (torch.zeros(1), torch.zeros(1))),
    ([1], [2]), ([1], (1,)), ({"a": 1}, {"b": 1}), (Cache(1, 2), Cache(1)), (Cache(count=1), Cache(count=2)),
    ({"a": torch.zeros(1)}, {}), ("x", "y"),
])  # fmt: skip
def test_another_form_is_told(want, got):
    with pytest.raises(OtherForm):
        pairs(want, got)
