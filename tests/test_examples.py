"""The examples run as their own words say, on the smallest settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples import graft, nanogpt, own_method, serve, vit

from .borrowed import SOURCE

ROOT = SOURCE.parents[1]


def test_nanogpt_trains_from_scratch_with_a_method(capsys):
    small = ["--width", "32", "--layers", "2", "--length", "32", "--batch", "8", "--steps", "30", "--rate", "0.01"]
    assert nanogpt.main(small) < 5.0, "no better than bytes drawn at random, 5.55"
    assert "4 rewritten by ddl" in capsys.readouterr().out
    assert len(Path(nanogpt.__file__).read_text().splitlines()) < 100


def test_a_graft_starts_as_the_pretrained_model_and_learns(tmp_path):
    with pytest.warns(UserWarning, match="plain from_pretrained"):
        losses = list(graft.main(["--steps", "15", "--out", str(tmp_path / "grafted")]).values())
    pretrained, grafted, first, second, loaded = losses
    assert pretrained == grafted > first > second == loaded
    assert (tmp_path / "grafted" / "config.json").is_file()


def test_a_vision_transformer_trains_on_generated_images(capsys):
    right = vit.main(["--width", "32", "--layers", "1", "--batch", "32", "--steps", "4"])
    assert list(right) == ["plain", "attnres"] and all(0 <= share <= 1 for share in right.values())
    assert "2 rewritten by attnres" in capsys.readouterr().out


@pytest.mark.matrix
def test_requests_join_and_leave_a_served_batch(capsys):
    answers = serve.main(["--width", "32", "--layers", "1", "--requests", "5", "--batch", "2", "--tokens", "4"])
    out = capsys.readouterr().out
    assert len(answers) == 5 and "checked in ONNX Runtime" in out and "same tokens: True" in out


@pytest.mark.matrix
def test_own_methods_in_each_scope_start_exactly_and_learn(capsys):
    losses = own_method.main(["--steps", "4"])
    assert all(last < first for first, last in losses.values())
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"scope (\w+)", line)[1] for line in lines] == ["site", "depth", "sequence", "route", "wide"]
    assert all("starts exactly: True" in line for line in lines)


@pytest.mark.parametrize("method", ["mhc", pytest.param("ddl", marks=pytest.mark.matrix)])
def test_sharded_training_goes_on_after_a_checkpoint(method, tmp_path):
    pytest.importorskip("transformers")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "examples/fsdp2_train.py"]
    options = ["--method", method, "--steps", "4", "--checkpoint", str(tmp_path / "checkpoint")]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = re.findall(r"step +(\d+)  loss (\S+)", done.stdout)
    assert [int(step) for step, _ in losses] == [0, 1, 2, 3, 4, 5, 4, 5]
    assert losses[4:6] == losses[6:8], "a loaded checkpoint goes on as if nothing had happened"
    assert float(losses[3][1]) < float(losses[0][1])
    assert len(list((tmp_path / "checkpoint").glob("*.distcp"))) == 2


@pytest.mark.matrix
@pytest.mark.parametrize(("each", "said"), [("1", "2 stages, 6 tensors cross"), ("2", "4 stages, 10 tensors cross")])
def test_stages_in_two_processes_train(each, said):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "examples/pipeline_train.py"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command, "--steps", "11", "--each", each],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert said in done.stdout
    first, last = map(float, re.findall(r"loss (\S+)", done.stdout))
    assert last < first
