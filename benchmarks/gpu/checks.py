"""Every kernel, forward and backward, in every type against float64; and what must hold bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import torch

from resfx.ops.register import KERNEL_TYPES, kernels_for

from . import cases
from .against import agree, watched
from .exact import EXACT
from .operators import OPERATORS, Operator
from .real import real
from .record import Writer
from .settings import Settings, forced


def operator(name: str, writer: Writer, settings: Settings) -> None:
    """A row for each case and type of an operator."""
    found = OPERATORS[name]
    builds = list(cases.ODD[name].items())
    if settings.dry:
        builds = builds[-1:]
    sizes = {"a model's": settings.large, "a model's, decoding": settings.small}
    builds += [(label, functools.partial(real, name, s)) for label, s in sizes.items()]
    for dtype in found.types:
        for label, build in builds:
            writer.once(f"{str(dtype)[6:]}: {label}", functools.partial(_held, found, build, dtype, settings))


def _held(found: Operator, build: cases.Build, dtype: torch.dtype, settings: Settings) -> dict[str, Any]:
    torch.manual_seed(0)
    with torch.device(settings.device):
        args = build(dtype)
    with forced(found.name, "triton"):
        kernels = kernels_for(found.module, args)
        assert kernels is not None, "the kernels do not take these arguments"
        with watched(kernels) as counts:
            worst = agree(found.public, found.formula, args, dtype, found.node)
    assert counts == {"forward": 1, "gradients": 1}, f"plain torch ran instead of kernels: {dict(counts)}"
    return {"worst": worst, "dtype": str(dtype)[6:]}


def exact(writer: Writer, settings: Settings) -> None:
    """A row for each thing that must hold bit for bit, and type."""
    for label, pairs in EXACT.items():
        for dtype in KERNEL_TYPES:
            writer.once(f"{str(dtype)[6:]}: {label}", functools.partial(_equal, pairs, dtype, settings))


def _equal(pairs: Any, dtype: torch.dtype, settings: Settings) -> dict[str, Any]:
    torch.manual_seed(0)
    with torch.device(settings.device):
        for number, (got, want) in enumerate(pairs(dtype)):
            assert torch.equal(got, want), (
                f"pair {number} differs by {float((got.float() - want.float()).abs().max()):.3g}"
            )
    return {"worst": 0.0, "dtype": str(dtype)[6:]}
