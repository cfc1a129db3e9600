"""What the benchmarks leave behind: a page each, and the figures it was made of."""

from __future__ import annotations

import json
from types import SimpleNamespace

from benchmarks import common
from benchmarks.pipeline import Link, order, step_time


def test_every_page_has_its_figures():
    pages, data = {p.stem for p in common.RESULTS.glob("*.md")}, {p.stem for p in common.DATA.glob("*.json")}
    assert pages and pages == data
    assert not list(common.RESULTS.glob("*.json"))


def test_a_page_and_its_figures_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "DATA", tmp_path / "data")
    rows = [{"group": "adds", "case": "plain", "ratio": 1.0}, {"group": "adds", "case": "ddl", "ratio": 1.25}]
    options = SimpleNamespace(device="cpu", threads=1, rounds=3)
    common.write("toys", rows, options, "Toys.", ("case", "ratio"))
    assert json.loads((tmp_path / "data" / "toys.json").read_text())["rows"] == rows
    assert "| ddl | 1.25 |" in (tmp_path / "toys.md").read_text()
    assert str(tmp_path / "toys.md") in capsys.readouterr().err


def test_a_simulated_pipeline_takes_what_1f1b_takes():
    """Without transfers ``(M + S - 1)`` forwards and backwards; a late transfer delays whoever waits for it."""
    free, slow = Link("free", 1e30, 0.0), Link("slow", 1.0, 0.0)
    assert step_time(4, 8, 1.0, [1.0] * 3, free) == (8 + 3) * 3
    assert step_time(2, 1, 1.0, [0.5], slow) == 6 + 2 * 0.5
    assert [kind for kind, _ in order(0, 2, 3)] == ["forward", "forward", "backward", "forward", "backward", "backward"]
