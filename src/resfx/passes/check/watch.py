"""What a run of the original does that a graph may lose: random numbers of other generators than torch's, backward
passes written by hand, hooks on tensors."""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from resfx.passes.capture.marking.acts import HOOKS, generators

_TORCH = str(Path(torch.__file__).parent)


@dataclass
class Seen:
    """What one run did.

    Attributes:
        functions: names of the ``autograd.Function`` classes in the graph of its outputs.
        hooks: where hooks were put on tensors, as ``file:line``.
        generators: which random number generators beside torch's it drew from.
        retained: where tensors were told to keep their gradient, which changes nothing that is computed.
    """

    functions: set[str] = field(default_factory=set)
    hooks: set[str] = field(default_factory=set)
    generators: set[str] = field(default_factory=set)
    retained: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.functions or self.hooks or self.generators)

    def beyond(self, other: Seen) -> bool:
        """Whether there is anything in it that the other run did not do."""
        return bool(self.functions - other.functions or self.hooks - other.hooks or self.generators - other.generators)

    def __str__(self) -> str:
        words = []
        if self.functions:
            words.append(f"a backward written by hand ({', '.join(sorted(self.functions))})")
        if self.hooks:
            words.append(f"a tensor hook (register_hook at {', '.join(sorted(self.hooks))})")
        if self.generators:
            words.append(f"numbers drawn from {' and '.join(sorted(self.generators))}")
        return " and ".join(words)


class _Hooks(TorchFunctionMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (name := getattr(func, "__name__", "")) in (*HOOKS, "retain_grad"):
            user = [f for f in traceback.extract_stack()[:-1] if not f.filename.startswith(_TORCH)]
            places = self.seen.hooks if name in HOOKS else self.seen.retained
            places.add(f"{user[-1].filename}:{user[-1].lineno}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    """Watch a run for hooks and for foreign random numbers; functions come from the graph of its results."""
    seen = Seen()
    before = generators()
    with _Hooks(seen):
        yield seen
    seen.generators = {name for name, state in generators().items() if state != before[name]}


def seed(number: int) -> None:
    """Seed every generator."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)
