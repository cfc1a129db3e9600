"""A study from its command to its page, at a size of its own; what stops it, and what it holds."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import resfx
from resfx.cli.cli import main
from resfx.cli.settings import SettingError
from resfx.cli.study import study_config
from resfx.errors import CheckError, OptionError
from resfx.studies import study as driver
from resfx.studies.plan import labelled, plain_run, with_method
from resfx.studies.run import Bench, execute
from resfx.studies.sizes import SIZES, Size
from resfx.studies.text import corpus_of
from resfx.studies.tokens import Order, tokenized

SMALL = Size(width=8, layers=2, heads=2, inner=12, vocabulary=256, length=16, batch=4, tokens=640, rate=1e-2)
ROWS = [{"text": f"{i} is {'odd' if i % 2 else 'even'}, and so is {i + 2}.\n" * 3} for i in range(120)]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", SMALL)


def bench_in(folder, host="llama"):
    return Bench(folder, host, SMALL, tokenized(corpus_of(ROWS), 256, folder), "cpu")


def test_from_the_command_to_the_page(tmp_path, capsys, monkeypatch):
    text = tmp_path / "text"
    text.mkdir()
    for i, row in enumerate(ROWS):
        (text / f"{i}.txt").write_text(row["text"])
    page = tmp_path / "study.md"
    command = ["study", "--methods", "denseformer", "--seeds", "1", "--text", str(text), "--out", str(tmp_path / "out")]
    assert main([*command, "--page", str(page), "--seconds", "600"]) == 0
    told = capsys.readouterr()
    assert "4 of 4 runs are done" in told.out and told.err.count("held-out loss") == 4
    words = page.read_text()
    assert "At step 0, 1 of 1 grafts had the plain model's held-out loss bit for bit." in words
    assert "Partial" not in words and f"--seeds 1 --text {text} --out {tmp_path / 'out'} --page {page}\n" in words
    figures = {path.name for path in (tmp_path / "study").iterdir()}
    assert {"scratch-differences.png", "graft-curves.png", "probe-denseformer.png", "stream-norm.png"} <= figures
    lines = list(csv.DictReader((tmp_path / "study" / "results.csv").read_text().splitlines()))
    assert [(line["setting"], line["label"]) for line in lines] == [
        ("scratch", "plain"), ("scratch", "denseformer"), ("graft", "plain"), ("graft", "denseformer")
    ]  # fmt: skip
    kept = json.loads((tmp_path / "study" / "results.json").read_text())
    scratch = {r["label"]: r for r in kept["runs"] if r["setting"] == "scratch"}
    assert scratch["denseformer"]["new_parameters"] == 2 + 3
    assert float(lines[0]["loss"]) == scratch["plain"]["loss"]

    monkeypatch.setattr(driver, "execute", None)  # nothing is done twice
    assert main([*command, "--quiet", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 4
    assert main([*command, "--tokens", "320", "--seconds", "0"]) == 1
    with pytest.raises(SystemExit):
        main([*command, "--methods", "denseformr"])
    assert "there is no method 'denseformr'" in capsys.readouterr().err


class Stopped(Exception):
    pass


def test_a_run_repeated_or_stopped_gives_the_same_loss_bit_for_bit(tmp_path):
    def run_in(name, told=lambda progress: None):
        (tmp_path / name).mkdir(exist_ok=True)
        bench = bench_in(tmp_path / name)
        run = with_method(plain_run(bench, "scratch", 3, 640, 1e-2), "vertical", resfx.VerticalAttention())
        return execute(run, bench, told, every=0.0)

    def stop(progress):
        if progress.step == 6:
            raise Stopped

    whole = run_in("whole")
    with pytest.raises(Stopped):
        run_in("stopped", stop)
    steps = []
    resumed = run_in("stopped", lambda progress: steps.append(progress.step))
    assert steps == [6, 7, 8, 9, 10]  # the last checkpoint was that of the fifth step
    assert resumed["loss"] == whole["loss"]
    assert [p[:2] for p in resumed["points"]] == [p[:2] for p in whole["points"]]
    assert whole["loss"] < whole["points"][0][1]


def test_a_graft_begins_as_the_plain_model_and_is_trained_on(tmp_path, monkeypatch):
    taken, at = [], Order.at
    monkeypatch.setattr(Order, "at", lambda self, step: taken.append(step) or at(self, step))
    bench = bench_in(tmp_path, "gpt2")
    plain = plain_run(bench, "graft", 0, 640, 1e-2)
    base = execute(plain.base, bench, lambda progress: None)
    assert taken == [0, *range(10)]  # the first to build it
    taken.clear()
    alone, graft = (
        execute(run, bench, lambda progress: None) for run in (plain, with_method(plain, "elc", resfx.ELC()))
    )
    assert graft["points"][0][1] == alone["points"][0][1] == base["points"][-1][1]
    assert taken == [10, *range(10, 15)] * 2  # the data goes on where it ended
    assert graft["method"]["start"] == "preserve" and graft["recipe"]["first"] == 10
    assert graft["points"][-1][1] != alone["points"][-1][1]


@dataclass(frozen=True, kw_only=True)
class Louder(resfx.Method):
    name: ClassVar[str] = "louder"

    def build(self, place):
        return LouderAdd()


class LouderAdd(nn.Module):
    def forward(self, x, f, c):
        return x + 1.25 * f


def test_a_graft_that_changes_the_model_is_refused(tmp_path):
    bench = bench_in(tmp_path)
    plain = plain_run(bench, "graft", 0, 64, 1e-2)
    execute(plain.base, bench, lambda progress: None)
    with pytest.raises(CheckError, match="a graft of louder must begin with the plain model's loss"):
        execute(with_method(plain, "louder", Louder()), bench, lambda progress: None)


def made_up(run, bench, told):
    """The result of a run whose loss depends on its rate: least at 0.02, but for the plain model at 0.01."""
    best = 0.01 if run.method is None else 0.02
    loss = 3 + abs(math.log(run.recipe.rate / best)) + run.seed / 10
    return {
        **run.facts(bench), "loss": loss, "tuning_loss": loss, "points": [], "device": "cpu",
        "parameters": 1000 + run.inner, "new_parameters": 0 if run.method is None else 100,
        "seconds": [run.recipe.steps * (1.0 if run.method is None else 1.5)] * 2,
    }  # fmt: skip


def test_every_row_gets_its_rate_and_its_controls(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "execute", made_up)
    done = resfx.study(
        ["denseformer"], out=tmp_path, seeds=2, settings="scratch", text=ROWS, rates=(0.01, 0.02),
        controls=("parameters", "time"),
    )  # fmt: skip
    rows = {row.label: row for row in done.rows("scratch")}
    assert list(rows) == [
        "plain", "denseformer", "plain, parameters of denseformer", "plain, time of denseformer",
    ]  # fmt: skip
    assert [row.any["recipe"]["rate"] for row in rows.values()] == [0.01, 0.02, 0.01, 0.01]
    assert rows["plain, time of denseformer"].any["recipe"]["steps"] == 15
    assert rows["plain, parameters of denseformer"].any["inner"] == 12 + round(100 / (2 * 3 * 8))
    assert done.planned == len(done.runs) == 8
    for label, control, difference in done.controlled("scratch"):
        assert (label, difference.mean, difference.seeds) == ("denseformer", pytest.approx(0), 2)
        assert control in rows
    assert len(done.controlled("scratch")) == 2


def test_what_is_done_is_compared_when_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "execute", made_up)
    done = resfx.study("ddl", out=tmp_path, seeds=1, text=ROWS, seconds=0.0)
    assert not done.runs and done.planned == 4 and "0 of 4 runs are done" in str(done)


def test_a_folder_of_another_study_is_refused(tmp_path):
    resfx.study("ddl", out=tmp_path, seeds=1, text=ROWS, seconds=0.0)
    with pytest.raises(OptionError, match="begun with another text"):
        resfx.study("ddl", out=tmp_path, seeds=1, text=ROWS[:60], seconds=0.0)
    bench = bench_in(tmp_path)
    run = plain_run(bench, "scratch", 0, 64, 1e-2)
    execute(run, bench, lambda progress: None)
    with pytest.raises(OptionError, match="another recipe"):
        plain_run(bench, "scratch", 0, 128, 1e-2).result(bench)


def test_a_study_goes_on_where_its_method_has_gained_an_option(tmp_path):
    bench = bench_in(tmp_path)
    run = with_method(plain_run(bench, "scratch", 0, 64, 1e-2), "ddl", resfx.DDL())
    done = execute(run, bench, lambda progress: None)
    path = run.folder(tmp_path) / "result.json"
    kept = json.loads(path.read_text())
    del kept["method"]["target"]
    path.write_text(json.dumps(kept))
    assert run.result(bench)["loss"] == done["loss"]
    with pytest.raises(OptionError, match="another method"):
        with_method(run, "ddl", resfx.DDL(value_channels=2)).result(bench)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "tinny"}, "there is no size 'tinny'"), ({"settings": "scrach"}, "settings has no 'scrach'"),
        ({"controls": ["tokens"]}, "controls has no 'tokens'"), ({"seeds": 0}, "needs a seed"),
        ({"methods": ["ddl", "ddl"]}, "two rows are called 'ddl'"),
    ],
)  # fmt: skip
def test_options_that_do_not_exist_are_refused(tmp_path, options, words):
    with pytest.raises(OptionError, match=words):
        resfx.study(**{"methods": "ddl", "out": tmp_path, "text": ROWS, "seconds": 0.0, **options})


def test_methods_on_the_command_line_and_their_labels():
    assert study_config("ddl, d_v=4") == resfx.DDL(value_channels=4)
    assert study_config("attnres, blocks") == resfx.AttnRes(block=4)
    assert study_config("short_swa, window=16, heads=1") == resfx.ShortSWA(window=16, heads=1)
    with pytest.raises(SettingError, match="no field"):
        study_config("ddl, beta=1")
    assert list(labelled(["ddl", resfx.DDL(value_channels=4)])) == ["ddl", "ddl, value_channels=4"]
    assert labelled({"mine": "ddl"}) == {"mine": resfx.DDL()}


def test_weights_begin_alike_in_all_rows_of_a_seed(tmp_path):
    from resfx.studies.run import build

    bench = bench_in(tmp_path)
    plain = plain_run(bench, "scratch", 5, 640, 1e-2)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    one, other = (build(run, bench, ids, ids) for run in (plain, with_method(plain, "ddl", resfx.DDL())))
    weights = other.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.state_dict().items())
    assert other._resfx.applications[0].method.start == "published"
