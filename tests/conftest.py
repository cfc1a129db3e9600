"""Shared by all tests: quiet libraries, one thread, models and rewrites made once."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RESFX_NATIVE", "0")  # whatever is built on this machine; the tests of it ask for it

import pytest
import torch

from resfx.ops import register

logging.getLogger("torch._export.non_strict_utils").setLevel(logging.ERROR)


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
