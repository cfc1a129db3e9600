"""The authors' own operators, imported from folders that whoever runs a benchmark has fetched: ``--authors FOLDER``.

Known, by the file that is looked for in each folder:

- ``DDL-vdim1-gpt-mha-rope.py``: Deep Delta Learning, github.com/yifanzhang-pro/deep-delta-learning
- ``modeling_qwen3_attnres.py``: Delta Attention Residuals and their form of Attention Residuals,
  github.com/wdlctc/delta-attention-residuals-code

Nothing of them is part of this repository; their licences are theirs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILES = {"delta": "DDL-vdim1-gpt-mha-rope.py", "read": "modeling_qwen3_attnres.py"}


def find(folders: Sequence[str]) -> dict[str, Any]:
    """The modules found in ``folders``, by what they are for; ends the program where a folder has neither file."""
    found: dict[str, Any] = {}
    for folder in folders:
        known = {kind: sorted(Path(folder).rglob(name)) for kind, name in FILES.items()}
        if not any(known.values()):
            raise SystemExit(f"--authors {folder}: no file {' or '.join(FILES.values())} below it. Fetch the authors'"
                             f" repository (see benchmarks/authors.py) and give its folder.")  # fmt: skip
        for kind, paths in known.items():
            if paths:
                found[kind] = load(paths[0])
    return found


def load(path: Path) -> Any:
    """A file as a module of a package of its folder, so that its relative imports work."""
    quiet = contextlib.redirect_stdout(io.StringIO())  # transformers prints what it finds in their docstrings
    package = f"authors_{path.stem.replace('-', '_')}"
    parent = types.ModuleType(package)
    parent.__path__ = [str(path.parent)]
    sys.modules[package] = parent
    spec = importlib.util.spec_from_file_location(f"{package}.module", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with quiet:
            spec.loader.exec_module(module)
    except ImportError as error:
        raise SystemExit(f"--authors: {path} cannot be imported here: {error}") from error
    return module


def read(module: Any, width: int, device: str) -> Callable[..., Tensor]:
    """``call(query, x, *sources)``: their softmax read over a list, the last source as the unfinished block."""
    norm = module.Qwen3RMSNorm(width, eps=1e-6).to(device)
    norm.requires_grad_(False)

    def call(query: Tensor, x: Tensor, *sources: Tensor) -> Tensor:
        projection = types.SimpleNamespace(weight=query.unsqueeze(0))
        blocks = [s.unsqueeze(0) for s in sources]
        return module.block_attn_res(blocks[:-1], blocks[-1], projection, norm)[0]

    return call


def delta(module: Any, width: int, dtype: torch.dtype, device: str) -> nn.Module:
    """Their residual with one value channel: ``forward(x, k_in=f, context=c)``."""
    config = types.SimpleNamespace(hidden_size=width, ddl_beta_init=1.0)
    return module.DeepDeltaResidualVdim1(config).to(device=device, dtype=dtype).requires_grad_(False)
