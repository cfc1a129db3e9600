"""What the benchmarks leave behind: a page each, and the figures it was made of."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks import common
from benchmarks.forms import configs
from benchmarks.systems.carried import FORMULAS, METHODS
from benchmarks.systems.counted import LAYERS, RANKS, STEP
from benchmarks.systems.page import DATA
from benchmarks.systems.simulate import Link, one_f_one_b, step_time


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


def test_what_crosses_is_counted_for_every_method_and_form_and_is_what_the_formula_says():
    rows = json.loads((DATA / "counted.json").read_text())
    assert set(rows) == set(FORMULAS) == set(METHODS) >= set(configs())
    for name, row in rows.items():
        for key, ranks in ("vectors", None), ("vectors, kept", RANKS):
            counts, formula = row[key]
            assert counts == formula == FORMULAS[name].crossing(LAYERS, LAYERS, ranks), name
        for key, stages, ranks in ("bytes", 2, None), ("bytes, interleaved", 4, None), ("bytes, kept", 4, RANKS):
            (forward, back), _ = row[key]
            assert forward == back == STEP * sum(FORMULAS[name].crossing(LAYERS, stages, ranks)), name


FREE, SLOW = Link("free", 1e30, 0.0), Link("slow", 1.0, 0.0)


def test_a_simulated_pipeline_takes_what_1f1b_takes():
    """Without transfers ``(M + S - 1)`` forwards and backwards; a late transfer delays whoever waits for it."""
    assert step_time(4, 8, [1.0] * 4, [2.0] * 4, [1.0] * 3, FREE) == (8 + 3) * 3
    assert step_time(2, 1, [1.0] * 2, [2.0] * 2, [0.5], SLOW) == 6 + 2 * 0.5
    kinds = [kind for kind, _, _ in one_f_one_b(0, 2, 2, 3)]
    assert kinds == ["forward", "forward", "backward", "forward", "backward", "backward"]


def test_interleaved_stages_wait_less():
    """The bubble is that of ``ranks - 1`` stages, each a part of what a process computes (arXiv 2104.04473)."""
    assert step_time(4, 16, [1.0] * 16, [2.0] * 16, [0.0] * 15, FREE) == (16 * 4 + 3) * 3


def test_processes_share_cores():
    assert step_time(2, 1, [1.0] * 2, [2.0] * 2, [0.0], FREE, cores=1) == 6, "one works at a time anyway"
    assert step_time(4, 64, [1.0] * 4, [2.0] * 4, [0.0] * 3, FREE, cores=2) == pytest.approx(64 * 4 * 3 / 2, rel=0.02)
