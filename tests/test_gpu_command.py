"""``make gpu`` without a GPU: a dry run, what becomes of parts that fail, what figures say of the form to run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import clock
from benchmarks.gpu import child, driver
from benchmarks.gpu.against import agree, draw
from benchmarks.gpu.choices import form, snippet
from benchmarks.gpu.parts import Part, parts
from benchmarks.gpu.record import Record
from benchmarks.gpu.tables import COMPILED, KERNEL, PLAIN
from resfx.ops.choice import ANY, TABLE, Choice

ROOT = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def command(out, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    line = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", str(out), *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@needs_triton
def test_a_dry_run_checks_measures_and_writes_its_page(tmp_path):
    chosen = [
        "check/channels",
        "check/window",
        "check/exact",
        "operators/weighted_sum",
        "models/graphs-forward",
        "tune/delta",
    ]
    done = command(tmp_path, "--here", "--only", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "gpu-dry-run.md").read_text()
    assert "| channels.mix | 3 of 3" in page and "| exact | 4 of 4" in page and "No check failed." in page
    assert f"| {KERNEL} |" in page and f"| {COMPILED} |" in page and "| ddl | after |" in page
    assert '"weighted_sum": {' in page and '"weighted_sum": {' in done.stdout and "## Launch parameters" in page
    assert "- operators/delta: not begun" in page
    assert set(json.loads((tmp_path / "data" / "gpu-dry-run.json").read_text())["parts"]) >= {
        "tune/delta",
        "check/window",
    }


@pytest.mark.matrix
@needs_triton
def test_parts_are_processes_and_are_not_made_twice(tmp_path):
    first = command(tmp_path, "--only", "check/weighted_sum")
    assert first.returncode == 0 and "9 rows, 0 failed" in first.stdout, first.stdout + first.stderr
    assert (tmp_path / "check-weighted_sum.log").exists()
    assert "check/weighted_sum: done before" in command(tmp_path, "--only", "check/weighted_sum").stdout


def test_no_device_is_said(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "finds no CUDA device" in done.stderr


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run over parts given as functions, in this process."""

    def start(minutes=5.0, here=True, limit=6.0, **functions):
        made = {n.replace("_", "/", 1): f for n, f in functions.items()}
        made = {name: Part(name, function, limit=limit) for name, function in made.items()}
        for module in (driver, child):
            monkeypatch.setattr(module, "parts", lambda: made)
        monkeypatch.setattr(child, "prepare", lambda settings: None)
        given = argparse.Namespace(out=tmp_path, results=tmp_path, dry=True, here=here, rounds=1, authors=[], jobs=1,
                                   minutes=minutes, only=None, again=False)  # fmt: skip
        work = driver.Run(given, {"card": "a card", "torch": "2", "triton": "3", "family": "sm_90"})
        work.go()
        work.write()
        return work

    return start


def rows(*makers):
    def part(writer, settings):
        for number, make in enumerate(makers):
            writer.once(f"float32: {number}", make)

    return part


def fine():
    return {"worst": 0.5}


def fails(text):
    def make():
        raise RuntimeError(text)

    return make


def test_a_failing_row_or_part_stops_no_other(run):
    def broken(writer, settings):
        raise ValueError("no such shape")

    work = run(check_a=rows(fine, fails("wrong\nsums"), fine), check_b=broken, operators_c=rows(fine))
    assert list(work.records["check/a"].rows) == ["float32: 0", "float32: 1", "float32: 2"]
    assert work.records["check/a"].failures() == ["float32: 1: RuntimeError: wrong / sums"]
    assert work.records["check/b"].note == "ValueError: no such shape" and work.records["operators/c"].done
    assert not work.held()
    page = (work.given.results / "gpu-a-card.md").read_text()
    assert "| a | 2 of 3, 0.5 |" in page and "- a, float32: 1: RuntimeError" in page and "no such shape" in page


def test_the_status_is_that_of_the_checks(run):
    assert run(check_a=rows(fine), operators_b=rows(fails("slow"))).held()
    assert not run(check_c=rows()).held(), "no row was made"


def test_a_lost_device_costs_one_row(run):
    work = run(check_a=rows(fails("CUDA error: an illegal memory access was encountered"), fine, fine))
    assert work.records["check/a"].done and len(work.records["check/a"].failures()) == 1


def test_without_time_nothing_is_begun(run):
    work = run(minutes=0.0, check_a=rows(fine))
    assert "no time left" in work.records["check/a"].note and not work.records["check/a"].rows and not work.held()


def test_a_part_that_hangs_is_ended(run):
    work = run(here=False, limit=1e-3, check_exact=rows())
    assert work.records["check/exact"].note == "ended after 0.001 minutes"


def test_rows_of_another_machine_or_source_are_not_kept(tmp_path, monkeypatch):
    record = Record(tmp_path, "check/a")
    record.rows, record.done = {"x": fine()}, True
    record.save("one card")
    assert Record(tmp_path, "check/a").load("one card").done
    assert not Record(tmp_path, "check/a").load("another").rows
    monkeypatch.setattr("benchmarks.gpu.record.source", lambda: "other kernels")
    assert not Record(tmp_path, "check/a").load("one card").rows


def test_parts_are_in_order_of_value():
    names = list(parts())
    first = {
        kind: next(i for i, n in enumerate(names) if n.startswith(kind))
        for kind in ("check", "operators", "models", "tune")
    }
    assert list(first) == sorted(first, key=first.get) and names[-1].startswith("tune/")


def figures(kernel, plain, host=0.0, dtype="bfloat16"):
    """Rows of one operator: milliseconds of both forms, forward and with gradients."""
    made = []
    for size, a, b in zip(("small", "large"), kernel, plain, strict=True):
        for mode in ("forward", "training"):
            here = {"size": size, "mode": mode, "dtype": dtype}
            made += [here | {"case": KERNEL, "median_ms": a, "host_ms": host}, here | {"case": PLAIN, "median_ms": b}]
    return made


def test_the_form_is_the_quicker_one_in_both_modes():
    assert form(figures((1, 1), (0.9, 1.1)), "small", "bfloat16") == "torch"
    assert form(figures((1, 1), (0.9, 1.1)), "large", "bfloat16") == "triton"
    assert form(figures((1, 1), (0.99, 0.99)), "small", "bfloat16") == "triton", "within the margin"
    assert form(figures((1, 1), (1.5, 1.5), host=2.0), "small", "bfloat16") == "torch", "the host is the longer one"
    mixed = figures((1, 1), (0.5, 0.5))
    mixed[-1]["median_ms"] = 2.0
    assert form(mixed, "large", "bfloat16") == "triton" and form(mixed[:2], "small", "bfloat16") is None


def test_the_snippet_is_lines_of_the_table(monkeypatch):
    monkeypatch.setitem(TABLE, "delta", {ANY: Choice(), "sm_80": Choice("torch", "triton", "measured")})
    facts = {"card": "H100", "torch": "2.13", "triton": "3.9", "family": "sm_90"}
    text = snippet({"delta": figures((1, 1), (0.5, 2)), "window": figures((1, 1), (2, 2))[:4]}, facts)
    lines = eval(f"{{{text}}}", {"Choice": Choice, "ANY": ANY})
    assert lines == {
        "delta": TABLE["delta"] | {"sm_90": Choice("torch", "triton", "H100, bfloat16, torch 2.13, triton 3.9")}
    }


def test_a_wrong_kernel_is_seen():
    args = (draw(64).float(),)
    assert agree(lambda x: x * 1.0, lambda x: x, args, torch.float32, "MulBackward") < 0.1
    with pytest.raises(AssertionError, match=r"result: .* of the tolerance"):
        agree(lambda x: x * 1.0001, lambda x: x, args, torch.float32, "MulBackward")
    with pytest.raises(AssertionError, match="gradient 1"):
        agree(lambda x: x * x.detach() * 1.0, lambda x: x * x, args, torch.float32, "MulBackward")
    with pytest.raises(AssertionError, match="the result is from"):
        agree(lambda x: x + 0.0, lambda x: x, args, torch.float32, "MulBackward")


def test_the_clock_gives_the_host_a_head_start(monkeypatch):
    times, flushes = iter([0.01, 2.0, 3.0]), []
    event = lambda **_: SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 1000 * next(times))
    card = SimpleNamespace(L2_cache_size=2**20)
    fakes = {"Event": event, "synchronize": lambda: None, "get_device_properties": lambda device: card}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    ticks = iter([0.0, 0.004, 1.0, 1.005, 2.0, 2.001])  # the first launch tells how long the card must be kept busy
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(ticks))
    timed = clock.CudaClock("cpu")
    timed.buffer = SimpleNamespace(zero_=lambda: flushes.append(1))
    step = lambda: None
    assert timed(step) == 2.0 and timed.host == pytest.approx(0.005) and len(flushes) == 7
    assert timed(step) == 3.0 and len(flushes) == 14
