"""Shared by all tests: quiet libraries, one thread, models and rewrites made once."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool would cost each process its own imports of torch
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")  # two layers take 0.7 of the time without it
os.environ.setdefault("RESFX_NATIVE", "0")  # whatever is built on this machine; the tests of it ask for it

import pytest
import torch

from resfx.ops import register

logging.getLogger("torch._export.non_strict_utils").setLevel(logging.ERROR)


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items):
    seen = Counter()
    for item in items:
        mark = item.get_closest_marker("every")
        if mark and not item.get_closest_marker("matrix"):
            test = item.nodeid.split("[")[0]
            if seen[test] % mark.args[0]:
                item.add_marker(pytest.mark.matrix)
            seen[test] += 1


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # a million objects of imported libraries, searched again and again while graphs are traced
    gc.set_threshold(10_000, 20, 20)


def pytest_unconfigure():
    gc.unfreeze()  # libraries look at the end whether all of theirs is gone


@pytest.fixture(autouse=True)
def _quiet_transformers():
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def library():
    """The CPU kernels for ONNX Runtime, built once for each state of their source."""
    from resfx.export import build_kernels
    from resfx.ops.library import COMPILERS, kernels_path

    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    path = Path(tempfile.gettempdir()) / f"resfx-tests-{os.getuid()}" / kernels_path().name
    return path if path.is_file() else build_kernels(path)


@pytest.fixture
def kernels(monkeypatch):
    """The path of CUDA tensors, for the tensors at hand."""
    monkeypatch.setattr(register, "KERNEL_DEVICES", {"cpu"})
