"""What a model's own code does while it is traced that no graph holds: backward passes written by hand, hooks on
tensors, random numbers of other generators than torch's, and what is done to torch's own."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn

from .record import Act, CallRecord

HOOKS = ("register_hook", "register_post_accumulate_grad_hook")
_TORCH = str(Path(torch.__file__).parent)
_ON_THE_WAY = (  # from the code that does it to what tells of it: torch keeps its compiler away from some functions
    __file__, contextlib.__file__, torch.random.__file__, torch.cuda.random.__file__,
    f"{_TORCH}/_compile.py", f"{_TORCH}/_dynamo/eval_frame.py",
)  # fmt: skip
_SEEDING = {
    "manual_seed": "seeds torch's random numbers (torch.manual_seed)",
    "set_state": "sets the state of torch's random numbers (fork_rng or set_rng_state)",
}


class Acts:
    """Tells calls what their own code does, from border to border.

    Args:
        tree: what is traced.
        current: the innermost call that is being made.
        grad: whether the call that is traced records gradients; its trace does in any case.
    """

    def __init__(self, tree: nn.Module, current: Callable[[], CallRecord | None], grad: bool) -> None:
        self._tree, self._current, self._thread, self._grad = tree, current, threading.get_ident(), grad
        self._numbers = generators()
        self._known: set[Any] = set()
        self._by_chance: CallRecord | None = None

    def settle(self, call: CallRecord | None, leaves: Sequence[Any]) -> None:
        """What was done since the last border was done by the code of a call.

        Args:
            leaves: what crosses this border.
        """
        functions = functions_behind([x for x in leaves if isinstance(x, torch.Tensor)], self._known)
        numbers = generators()
        if call is not None:
            for name in functions - set(vars(torch.utils.checkpoint)):  # that is part of how a backward pass is run
                self._add(call, f"has a backward written by hand ({name})", self._code_of(call), "gradient")
            for name in (name for name, state in numbers.items() if state != self._numbers[name]):
                self._add(call, f"draws numbers from {name}", self._code_of(call), "numbers")
        self._numbers = numbers

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, hooks on tensors, what is done to torch's generators, and questions about gradients are told of."""
        held: Any
        places: list[tuple[Any, str, Any]] = [(torch.Tensor, name, self._hooking(name)) for name in HOOKS]
        places.append((torch.random, "default_generator", _Generator(torch.random.default_generator, self._seeds)))
        if several := getattr(torch.cuda, "default_generators", ()):
            places.append((torch.cuda, "default_generators", tuple(_Generator(g, self._seeds) for g in several)))
        places.append((torch, "is_grad_enabled", self._asked()))
        with contextlib.ExitStack() as stack:
            for owner, name, told in places:
                held = getattr(owner, name)
                stack.callback(setattr, owner, name, held)
                setattr(owner, name, told)
            yield

    def _hooking(self, name: str) -> Any:
        hook = getattr(torch.Tensor, name)

        @functools.wraps(hook)
        def told(*args: Any, **kwargs: Any) -> Any:
            self._tell(f"puts a hook on a tensor ({name})", "gradient")
            return hook(*args, **kwargs)

        return told

    def _asked(self) -> Any:
        asks = torch.is_grad_enabled

        def told() -> bool:
            call, asking = self._current(), sys._getframe(1).f_code.co_filename
            if call is None or threading.get_ident() != self._thread or asking.startswith(_TORCH):
                return asks()
            call.asks_grad = True
            return asks() and self._grad  # a trace has gradients where the call has none: it serves both

        return told

    def _seeds(self, how: str) -> None:
        if threading.get_ident() != self._thread:
            return
        if how == "seed":
            self._by_chance = self._current()
        elif how == "set_state" or self._by_chance is None or self._by_chance is not self._current():
            self._tell(_SEEDING[how], "seed")  # numbers after a seed of chance are as good as any

    def _tell(self, what: str, kind: str) -> None:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename in _ON_THE_WAY:
            frame = frame.f_back
        call = self._current()
        if call is None or frame is None or threading.get_ident() != self._thread:
            return
        if not frame.f_code.co_filename.startswith(_TORCH):  # which knows what it does with its own
            self._add(call, what, f"{frame.f_code.co_filename}:{frame.f_lineno}", kind)

    def _add(self, call: CallRecord, what: str, where: str, kind: str) -> None:
        call.acts.add(Act(what, where, kind))

    def _code_of(self, call: CallRecord) -> str:
        path = call.target
        function = type(self._tree.get_submodule(path)).forward if isinstance(path, str) else path
        code = getattr(function, "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else call.name


class _Generator:
    """One of torch's generators, for its functions: it tells what they do to it."""

    def __init__(self, generator: torch.Generator, tell: Callable[[str], None]) -> None:
        self._generator, self._tell = generator, tell

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._generator, name)
        if name not in _SEEDING and name != "seed":
            return found

        def told(*args: Any) -> Any:
            self._tell(name)
            return found(*args)

        return told


def generators() -> dict[str, Any]:
    """States of the random number generators that no graph knows, in comparable form."""
    _, keys, *rest = np.random.get_state(legacy=True)
    return {"Python's random": random.getstate(), "numpy.random": (np.asarray(keys).tobytes(), *rest)}


def functions_behind(outputs: Sequence[torch.Tensor], known: set[Any]) -> set[str]:
    """Names of the ``autograd.Function`` classes in the graph that computed some tensors.

    Args:
        known: nodes of it that are not gone through again; those that are join them.
    """
    found: set[str] = set()
    left = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while left:
        node = left.pop()
        if node in known:
            continue
        known.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found.add(type(node).__name__.removesuffix("Backward"))
        left += [n for n, _ in node.next_functions if n is not None]
    return found
