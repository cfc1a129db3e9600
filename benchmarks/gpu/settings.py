"""What all parts are given: the device, how large, how often; and the form of an operator that a call must take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from resfx.ops import register
from resfx.ops.choice import ANY, TABLE, Choice, Form, family

from .real import LARGE, SMALL, TINY, Sizes


@dataclass(frozen=True)
class Settings:
    """Of a run. The fields that :func:`benchmarks.common.group` reads have the names it knows.

    Attributes:
        dry: tiny shapes on the CPU, kernels interpreted, nothing compiled by Inductor: to see that all of it runs.
        rounds: measured rounds of every group.
        authors: folders with the code of papers' authors.
        out: where parts leave their files.
    """

    out: Path
    dry: bool = False
    rounds: int = 30
    authors: list[str] = field(default_factory=list)
    threads: int = 1

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def large(self) -> Sizes:
        return TINY if self.dry else LARGE

    @property
    def small(self) -> Sizes:
        return TINY if self.dry else SMALL


def prepare(settings: Settings) -> None:
    """What a process that runs parts needs before it does; of a dry run, that the CPU runs kernels."""
    torch.manual_seed(0)
    torch.set_num_threads(settings.threads if settings.dry else max(1, (os.cpu_count() or 2) // 2))
    if settings.dry:
        register.KERNEL_DEVICES.add("cpu")
        common.COMPILER["backend"] = "eager"


@contextlib.contextmanager
def forced(operator: str, form: Form) -> Iterator[None]:
    """Inside, an operator runs in this form, whatever the table says of the card."""
    before = TABLE[operator]
    TABLE[operator] = {ANY: Choice(form, form, "forced")}
    try:
        yield
    finally:
        TABLE[operator] = before


def facts(settings: Settings) -> dict[str, Any]:
    """Card, driver and versions: what figures are of."""
    import platform
    import shutil
    import subprocess

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError as error:
        found["triton"] = f"none ({error})"
    found["compiler"] = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), "none: Triton needs one")
    if settings.dry:
        return found | {"card": "dry run", "family": "interpreter"}
    card = torch.cuda.get_device_properties(0)
    found |= {
        "card": card.name, "family": family(torch.device("cuda", 0)), "memory_GiB": round(card.total_memory / 2**30),
        "cache_MiB": round(getattr(card, "L2_cache_size", 0) / 2**20), "processors": card.multi_processor_count,
        "cuda": torch.version.cuda, "cores": os.cpu_count(),
    }  # fmt: skip
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()[
            0
        ]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        found["driver"] = f"unknown ({type(error).__name__})"
    return found
