"""Launch parameters of the kernels, which are estimates: the best of a few against the present ones."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from benchmarks.common import Case, measure
from resfx.comparison.measure import quartiles
from resfx.ops.register import kernels_for

from .operators import OPERATORS
from .real import real
from .record import Writer
from .settings import Settings, forced

WARPS = (1, 2, 4, 8, 16)


def variants(kernels: ModuleType) -> dict[str, dict[str, Any]]:
    """What to set in a module of kernels, by what it is called in the table."""
    found: dict[str, dict[str, Any]] = {"present": {}}
    if launch := getattr(kernels, "launch", None):
        for warps in WARPS:
            found[f"{warps} warps"] = {"launch": functools.partial(_with, launch, num_warps=warps)}
    if hasattr(kernels, "PROGRAMS"):
        found |= {f"{count} programs share rows": {"PROGRAMS": count} for count in (256, 512, 2048, 4096)}
    if hasattr(kernels, "COLUMNS"):
        for rows, columns in ((16, 128), (32, 64), (32, 128), (64, 128), (128, 32), (8, 512)):
            found[f"tiles of {rows} x {columns}"] = {"ROWS": rows, "COLUMNS": columns}
    if hasattr(kernels, "ELEMENTS"):
        for elements in (2048, 4096, 8192, 16384):
            found |= {f"{elements} elements, {w} warps": {"ELEMENTS": elements, "WARPS": w} for w in (2, 4, 8)}
    if tiles := getattr(kernels, "tiles", None):
        for block, keys, warps in ((16, 16, 1), (16, 16, 2), (32, 32, 2), (32, 32, 4), (64, 32, 2), (64, 64, 4)):
            changed = functools.partial(_with, tiles, BLOCK=block, KEYS=keys, num_warps=warps)
            found[f"{block} queries, {keys} keys, {warps} warps"] = {"tiles": changed}
    if "sinkhorn" in kernels.__name__:
        found |= {f"{count} matrices a program": {"BLOCK": count} for count in (64, 128)}
    return found


def _with(options: Callable[..., dict[str, Any]], *args: Any, **changed: Any) -> dict[str, Any]:
    return options(*args) | changed


@contextlib.contextmanager
def changed(module: ModuleType, values: dict[str, Any]) -> Iterator[None]:
    """Inside, a module has other globals."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def operator(name: str, writer: Writer, settings: Settings) -> None:
    """A row for each direction: the present parameters, and all others by their share of the time."""
    for direction in ("forward", "gradients"):
        writer.once(f"{name}, {direction}", functools.partial(_row, name, direction, settings))


def _row(name: str, direction: str, settings: Settings) -> dict[str, Any]:
    found = OPERATORS[name]
    dtype = torch.bfloat16 if torch.bfloat16 in found.types else torch.float32
    with torch.device(settings.device):
        args = real(name, settings.large, dtype)
    with forced(name, "triton"):
        kernels = kernels_for(found.module, args)
    assert kernels is not None
    given = args if direction == "forward" else (torch.randn_like(kernels.forward(*args)), *args)

    def step(values: dict[str, Any]) -> Any:
        with changed(kernels, values):
            return getattr(kernels, direction)(*given)

    tried = variants(kernels)
    if settings.dry:
        tried = dict(list(tried.items())[:2])
    made = [Case(label, functools.partial(step, values)) for label, values in tried.items()]
    measure(made, settings)
    times = {case.name: quartiles(case.samples)[1] for case in made if case.samples}
    shares = {label: time / times["present"] for label, time in times.items()}
    best = min(shares, key=lambda label: shares[label])
    failed = {case.name: case.failed for case in made if case.failed}
    row = {"operator": found.title, "direction": direction, "dtype": str(dtype)[6:], "best": best,
           "share": shares[best], "present_ms": times["present"] * 1e3, "shares": shares}  # fmt: skip
    return {"rows": [row | {"refused": failed}]}
