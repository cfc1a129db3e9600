"""The examples run as their own words say, on the smallest settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from .borrowed import SOURCE

ROOT = SOURCE.parents[1]


@pytest.mark.parametrize("method", ["ddl", "mhc"])
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
