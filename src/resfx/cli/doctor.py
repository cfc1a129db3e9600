"""``python -m resfx doctor``: what is installed, built and within reach, and how to get what is missing."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import groupby
from typing import Any

import torch
from torch.torch_version import TorchVersion

from resfx import __version__
from resfx.ops.library import COMPILERS, built_kernels
from resfx.report.text import table

TOOLS = {"dev", "docs"}  # for work on the library itself
RIVALS = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        group: what it belongs to: ``needed``, ``extra hf``, ``kernels``, ``GPU``, ...
        what: its name.
        found: a version, a path, or what is the matter.
        remedy: what to do where something is missing; ``""`` where nothing is.
    """

    group: str
    what: str
    found: str
    remedy: str = ""

    @property
    def fatal(self) -> bool:
        """Whether the library cannot work like this."""
        return bool(self.remedy) and self.group == "needed"


@dataclass(frozen=True)
class Diagnosis:
    """All findings; ``print`` it."""

    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        """Whether everything that is needed is there; extras may be missing."""
        return not any(f.fatal for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: JSON-ready."""
        return {"resfx": __version__, "healthy": self.healthy, "findings": [asdict(f) for f in self.findings]}

    def __str__(self) -> str:
        rows = []
        for group, findings in groupby(self.findings, key=lambda f: f.group):
            for i, f in enumerate(findings):
                rows.append(("" if i else group, f.what, f.found, f.remedy))
        return f"resfx {__version__}\n\n{table(rows, ('', 'what', 'found', 'to do'), indent=2)}"


def diagnose() -> Diagnosis:
    """Look at this machine and this environment; nothing is changed, built or downloaded."""
    python = Finding("needed", "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    return Diagnosis([python, *_packages(), *_kernels(), *_gpu(), *_onnx_runtime()])


def _packages() -> Iterator[Finding]:
    try:
        wanted = requires("resfx") or []
    except PackageNotFoundError:
        yield Finding("needed", "resfx", "run from its source, never installed: what it requires is not known")
        return
    for line in wanted:
        name, least, extra = parts_of(line)
        # One of the two runtimes is enough, and both at once would overwrite each other's files.
        if extra in TOOLS or (extra == "onnx-gpu" and (name not in RIVALS or not _version_of(name))):
            continue
        if name == RIVALS[0] and not _version_of(name) and _version_of(RIVALS[1]):
            continue
        yield _package(name, least, extra)
    if all(map(_version_of, RIVALS)):
        yield Finding("extra onnx", " and ".join(RIVALS), "both are installed: they overwrite each other's files",
                      f"pip uninstall {' '.join(RIVALS)}, then install one")  # fmt: skip


def parts_of(requirement: str) -> tuple[str, str, str]:
    """Name, least version and extra of a requirement of this package: they are of the plainest shape there is."""
    name, least = re.match(r"([\w.-]+)(?:\s*>=\s*([\w.]+))?", requirement).groups()  # type: ignore[union-attr]
    extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
    return name, least or "", extra[1] if extra else ""


def _package(name: str, least: str, extra: str) -> Finding:
    group, found = f"extra {extra}" if extra else "needed", _version_of(name)
    remedy = f"pip install 'resfx[{extra}]'" if extra else f"pip install '{name}>={least}'"
    if found is None:
        return Finding(group, name, "missing", remedy)
    if least and TorchVersion(found) < least:
        return Finding(group, name, f"{found}, older than {least}", remedy)
    return Finding(group, name, found)


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kernels() -> Iterator[Finding]:
    compiler = os.environ.get("CXX") or next((c for c in COMPILERS if shutil.which(c)), None)
    path = built_kernels()
    if path is None:
        build = "python -m resfx kernels" if compiler else "install a C++ compiler, then python -m resfx kernels"
        yield Finding("CPU kernels", "library", "not built: plain torch and function bodies run", build)
    else:
        off = "; RESFX_NATIVE=0 keeps eager calls off it" if os.environ.get("RESFX_NATIVE") == "0" else ""
        try:
            ctypes.CDLL(str(path))
            yield Finding("CPU kernels", "library", f"{path}{off}")
        except OSError as error:
            yield Finding("CPU kernels", "library", f"does not load: {error}", "python -m resfx kernels")
    yield Finding("CPU kernels", "C++ compiler", compiler or f"none of {', '.join(COMPILERS)}",
                  "" if compiler else "apt install g++, or name one in CXX")  # fmt: skip


def _gpu() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU only"
        yield Finding("GPU", "devices", f"none that torch sees; torch {torch.__version__} is built {built}")
        return
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        yield Finding(
            "GPU", f"cuda:{i}", f"{card.name}, sm_{card.major}{card.minor}, {card.total_memory / 2**30:.0f} GiB"
        )
    if _version_of("triton") is None:
        yield Finding("GPU", "kernels", "no triton: plain torch runs", "pip install 'resfx[triton]'")


def _onnx_runtime() -> Iterator[Finding]:
    try:
        providers = importlib.import_module("onnxruntime").get_available_providers()
    except ImportError as error:
        if any(map(_version_of, RIVALS)):
            yield Finding("ONNX Runtime", "import", str(error), "install it anew")
        return
    lacks = torch.cuda.is_available() and "CUDAExecutionProvider" not in providers
    remedy = "pip uninstall onnxruntime, then pip install 'resfx[onnx-gpu]'" if lacks else ""
    yield Finding("ONNX Runtime", "providers", ", ".join(providers), remedy)
