"""What methods say they keep for the backward pass, against what they keep."""

from __future__ import annotations

import pytest

import resfx
from benchmarks.memory import measured, predicted
from resfx.methods.base import method_of, methods
from resfx.ops import chunks

OTHERS = {
    "mhc, 3": resfx.MHC(n=3), "frac_connections, 2": resfx.FracConnections(m=2), "altup, 3": resfx.AltUp(n=3),
    "ddl, 2 channels": resfx.DDL(value_channels=2), "ddl, 4 channels": resfx.DDL(value_channels=4),
}  # fmt: skip
STATED = {n: method_of(n) for n, cls in methods().items() if cls.saved} | OTHERS


@pytest.mark.every(5)
@pytest.mark.parametrize("name", STATED)
def test_a_formula_is_what_is_kept(name, monkeypatch):
    monkeypatch.setattr(chunks, "FEW", 0)  # as sources are read that are too large to stack
    assert measured(STATED[name], 32, "eager", (16, 24), 2) == pytest.approx(predicted(STATED[name], 32, 2))
