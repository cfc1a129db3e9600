"""The mode of modules, training or evaluation, that a model's own code sets while it is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from torch import nn

from resfx.errors import CaptureError
from resfx.passes.capture.structure import Flattener

from .record import CallRecord, Mode
from .watch import Owned


def is_mode(key: Any, name: str) -> bool:
    """Whether an attribute of what is watched is the mode of a module."""
    return name == "training" and isinstance(key, Owned)


def told_mode(bound: MethodType, quietly: Callable[..., Any], tell: Callable[[str, Any], None]) -> Any:
    """A module's ``train`` and ``eval``, told of as a whole: what a class of one's own does there it does when called.

    Args:
        bound: a method that is looked up; any other is given back as it is.
        quietly: calls what it is given, and nobody is told of what that does.
        tell: called with the method's name and ``(args, kwargs)``.
    """
    if bound.__name__ not in ("train", "eval") or not isinstance(bound.__self__, nn.Module):
        return bound

    @functools.wraps(bound)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = quietly(functools.partial(bound, *args, **kwargs))
        tell(bound.__name__, (args, kwargs))
        return result

    return call


def mode_set(calls: Sequence[CallRecord], key: Owned, method: str, value: Any) -> Mode:
    """What the innermost call has just done to the mode of a module.

    Args:
        calls: all that have begun so far.

    Raises:
        CaptureError: where that depends on tensors.
    """
    flat = Flattener()
    template = flat.flatten(value)
    if flat.leaves:
        raise CaptureError(
            f"cannot capture the mode of {key.paths[0] or 'the model'}", "it is set by a tensor, or by a size",
            "set it by a plain bool, or outside of forward",
        )  # fmt: skip
    return Mode(key.ways, method, template, sum(len(call.modes) for call in calls), len(calls))
