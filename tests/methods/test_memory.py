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
    "depth_read, 2 heads": resfx.DepthRead(heads=2, window=2),
    "short_swa": resfx.ShortSWA(window=16), "short_swa, narrow": resfx.ShortSWA(window=16, heads=2, head_dim=4),
}  # fmt: skip
STATED = {n: method_of(n) for n, cls in methods().items() if cls.saved} | OTHERS


@pytest.mark.every(5)
@pytest.mark.parametrize("name", STATED)
def test_a_formula_is_what_is_kept(name, monkeypatch):
    monkeypatch.setattr(chunks, "FEW", 0)  # as sources are read that are too large to stack
    depth = 3 if name == "vertical" or STATED[name].scope == "route" else 2  # these leave a block of two as it is
    assert measured(STATED[name], 32, "eager", (32, 64), depth) == pytest.approx(predicted(STATED[name], 32, depth))
