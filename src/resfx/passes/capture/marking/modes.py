"""The mode of modules, training or evaluation, that a model's own code sets while it is called."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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


class Modes:
    """Tells calls of the modes that their own code sets.

    Args:
        calls: all that have begun; the trace adds to it.
    """

    def __init__(self, calls: Sequence[CallRecord]) -> None:
        self._calls, self._number = calls, 0
        self._whole = self._set = False

    def flag(self, key: Owned, module: nn.Module, call: CallRecord) -> None:
        """The flag of a module was set."""
        self._set = True
        if not self._whole:
            self._add(key, "", vars(module)["training"], call)

    def method(self, key: Owned, bound: MethodType, call: CallRecord) -> Any:
        """A method was looked up: ``train`` and ``eval`` are told of as a whole, where they set any flag.

        What a class of one's own does there it does when called.
        """
        if self._whole or bound.__name__ not in ("train", "eval") or not isinstance(bound.__self__, nn.Module):
            return bound

        @functools.wraps(bound)
        def told(*args: Any, **kwargs: Any) -> Any:
            self._whole, self._set = True, False
            try:
                result = bound(*args, **kwargs)
            finally:
                self._whole = False
            if self._set:
                self._add(key, bound.__name__, (args, kwargs), call)
            return result

        return told

    def _add(self, key: Owned, method: str, value: Any, call: CallRecord) -> None:
        flat = Flattener()
        template = flat.flatten(value)
        if flat.leaves:
            raise CaptureError(
                f"cannot capture the mode of {key.paths[0] or 'the model'}", "it is set by a tensor, or by a size",
                "set it by a plain bool, or outside of forward",
            )  # fmt: skip
        self._number += 1
        call.modes.append(Mode(key.ways, method, template, self._number, len(self._calls)))
