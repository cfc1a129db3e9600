"""Pipelines against one process, for one method of every way that values cross: ``tests/pipelines.py`` has all."""

from __future__ import annotations

import pytest
from pipelines import SCHEDULES, row


@pytest.mark.matrix
@pytest.mark.parametrize("label", ["attnres", "mhc", "value_residual", "value_embedding"])
def test_losses_and_gradients_are_those_of_one_process(label):
    found = row(label, (2,))
    assert found.keys() == {f"2, {schedule}" for schedule in SCHEDULES}
    assert max(max(differences.values()) for differences in found.values()) < 1e-6
