"""Shared by all tests: quiet libraries, one thread, models and rewrites made once."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hosts import BY_NAME

import resfx
from resfx.ops import _operators

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
    from resfx.export.kernels import COMPILERS, kernels_path

    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    path = Path(tempfile.gettempdir()) / f"resfx-tests-{os.getuid()}" / kernels_path().name
    return path if path.is_file() else build_kernels(path)


@pytest.fixture
def kernels(monkeypatch):
    """The path of CUDA tensors, for the tensors at hand."""
    monkeypatch.setattr(_operators, "KERNEL_DEVICES", {"cpu"})


def rewritten(name: str, mode: object = "ddl"):
    """``(original, rewritten, inputs)`` of a host, made once and handed out as it was made."""
    model, new, inputs, state = _rewritten(name, mode)
    new.load_state_dict(state)
    for module in (model, new):
        module.eval().zero_grad()
    return model, new, inputs


@functools.cache
def _rewritten(name: str, mode: object):
    host = BY_NAME[name]
    model = host.make()
    inputs = host.inputs(2, 7)
    new = resfx.rewrite(model, mode, kwargs=inputs)
    return model, new, inputs, {k: v.clone() for k, v in new.state_dict().items()}


def randomise(module, std: float = 0.1) -> None:
    """Move the new parameters off their start, so that the rewrite acts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.new_parameters().values():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter))
