"""Which form runs an eager call on a card: the hand-written kernel or plain torch, by measurement.

The one place that says so. ``make gpu`` measures both forms of every operator and prints the lines of ``TABLE`` that
its card asks for. Compiled calls are not asked: there Inductor writes the code, of the open formula.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal["triton", "torch"]
Size = Literal["small", "large"]

SMALL = 2**20
"""Elements of a call's largest tensor below which launches decide, and from which on moving bytes does."""


@dataclass(frozen=True)
class Choice:
    """The form for calls of either size, and where that is from."""

    small: Form = "triton"
    large: Form = "triton"
    note: str = "not measured on a card yet"

    def __post_init__(self) -> None:
        if not {self.small, self.large} <= {"triton", "torch"}:
            raise ValueError(f"a form is 'triton' or 'torch', not {self.small!r}, {self.large!r}")


ANY = "any"
"""The family of a card that has no line of its own."""

TABLE: dict[str, dict[str, Choice]] = {
    "attention_read": {ANY: Choice()},
    "channels.combine": {ANY: Choice()},
    "channels.delta": {ANY: Choice()},
    "channels.mix": {ANY: Choice()},
    "delta": {ANY: Choice()},
    "short_convolution": {ANY: Choice()},
    "sinkhorn": {ANY: Choice()},
    "weighted_sum": {ANY: Choice()},
    "window": {ANY: Choice()},
}
"""By operator (see :func:`operator_of`), then family of cards (see :func:`family`)."""


def chosen(module: str, tensors: Iterable[Tensor]) -> Form:
    """The form for a call whose kernels are in ``module``; an operator without a line has its kernels.

    Args:
        module: of :mod:`resfx.ops`, such as ``delta.triton``.
        tensors: all of the call, on one device.
    """
    lines = TABLE.get(operator_of(module))
    if not lines:
        return "triton"
    largest = max(tensors, key=Tensor.numel)
    line = lines.get(family(largest.device)) or lines.get(ANY) or Choice()
    return line.small if size_of(largest.numel()) == "small" else line.large


def size_of(elements: int) -> Size:
    """The class of a call whose largest tensor has so many elements."""
    return "small" if elements < SMALL else "large"


@functools.cache
def operator_of(module: str) -> str:
    """``delta`` of the kernels' module ``delta.triton``, ``channels.mix`` of ``channels.triton_mix``."""
    folder, _, file = module.rpartition(".")
    return f"{folder}.{file.removeprefix('triton_')}" if file.startswith("triton_") else folder


@functools.cache
def family(device: torch.device) -> str:
    """``sm_90`` of a device of compute capability 9.0, ``gfx_...`` of one that ROCm drives, else :data:`ANY`."""
    if device.type != "cuda":
        return ANY
    major, minor = torch.cuda.get_device_capability(device)
    return f"{'gfx' if torch.version.hip else 'sm'}_{major}{minor}"
