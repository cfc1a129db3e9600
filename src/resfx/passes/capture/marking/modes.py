"""The mode of modules, training or evaluation, that a model's own code sets while it is called."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from resfx.errors import CaptureError
from resfx.passes.capture.structure import Flattener, Template

from .watch import Owned


def is_mode(key: Any, name: str) -> bool:
    """Whether an attribute of what is watched is the mode of a module."""
    return name == "training" and isinstance(key, Owned)


def changes_mode(bound: MethodType) -> bool:
    """Whether a method is one of a module that sets its mode and that of what is below it."""
    return bound.__name__ in ("train", "eval") and isinstance(bound.__self__, nn.Module)


def given_mode(value: Any) -> Template:
    """What a mode is set to, as generated code will say it.

    Raises:
        CaptureError: where it depends on tensors.
    """
    flat = Flattener()
    template = flat.flatten(value)
    if flat.leaves:
        raise CaptureError(
            "cannot capture a module's training mode", "it depends on values of tensors, or on sizes",
            "set it by a plain bool, or outside of forward",
        )  # fmt: skip
    return template
