"""Measuring two models side by side: clocks, peak memory, operator counts."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from resfx._torch import TorchDispatchMode, pytree
from resfx.passes.capture.structure import Flattener


@dataclass
class Inputs:
    """Copies of a call's arguments that no step can hand on to the next one.

    Stateful arguments (caches) are copied again before every step, outside the clock; tensors are not.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    _given: tuple[Any, Any] = field(init=False, repr=False)
    _stateful: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flat = Flattener()
        flat.flatten((self.args, self.kwargs))
        self.tensors = [t for t in flat.leaves if isinstance(t, torch.Tensor)]
        self._stateful = bool(flat.objects)
        self._given = pytree.tree_map_only(torch.Tensor, _twin, (self.args, self.kwargs))
        self.renew()

    def renew(self) -> None:
        """Arguments for the next step."""
        self.args, self.kwargs = copy.deepcopy(self._given) if self._stateful else self._given
        if not self._stateful:
            pytree.tree_map_only(torch.Tensor, lambda t: setattr(t, "grad", None), self._given)


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def set_training(model: nn.Module, training: bool) -> None:
    """``model.train(training)``, also for modules of an exported program, which refuse it."""
    try:
        model.train(training)
    except NotImplementedError:
        for module in model.modules():
            module.training = training


@dataclass
class Runner:
    """One model, ready to run one step of one mode on one backend.

    Attributes:
        step: what the clock sees.
        ready: what must happen before each step, off the clock.
        first: seconds of the first step: capture and compilation.
        nodes: size of the graph or number of operators that a step runs, as the backend counts it.
        note: anything else worth saying.
    """

    step: Callable[[], Any]
    ready: Callable[[], None] = lambda: None
    first: float = 0.0
    nodes: int | None = None
    note: str = ""


def wall_clock(device: torch.device) -> Callable[[Runner], float]:
    """A clock for one step, in seconds: events on a CUDA device, else ``time.perf_counter``."""

    def on_cuda(runner: Runner) -> float:
        runner.ready()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        runner.step()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000

    def on_cpu(runner: Runner) -> float:
        runner.ready()
        start = time.perf_counter()
        runner.step()
        return time.perf_counter() - start

    return on_cuda if device.type == "cuda" else on_cpu


def interleave(
    before: Runner,
    after: Runner,
    clock: Callable[[Runner], float],
    *,
    repeats: int,
    warmup: int,
    seconds: float | None = None,
) -> tuple[list[float], list[float]]:
    """Time two runners in turns, A B then B A, so that drift and neighbours on the machine hit both.

    Args:
        repeats: rounds of one step each.
        warmup: rounds that are not counted.
        seconds: stop after this long, but not before three rounds.
    """
    pairs: tuple[tuple[Runner, list[float]], ...] = ((before, []), (after, []))
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(-warmup, repeats):
            if number == 0:
                start = time.perf_counter()
            for runner, samples in pairs if number % 2 == 0 else pairs[::-1]:
                elapsed = clock(runner)
                if number >= 0:
                    samples.append(elapsed)
            if seconds is not None and number >= 2 and time.perf_counter() - start > seconds:
                break
    finally:
        if collecting:
            gc.enable()
    return pairs[0][1], pairs[1][1]


def peak_memory(runner: Runner, device: torch.device) -> int:
    """Bytes that one step allocates at its highest, beyond what was there before it.

    On CUDA from ``torch.cuda.max_memory_allocated``; on CPU from the allocator's events in a torch profile, which
    see eager and compiled code alike, but nothing that other libraries allocate.
    """
    runner.ready()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        runner.step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    with _quiet(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        runner.step()
    assert profile.kineto_results is not None
    changes = [(e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the lines that the profiler's C++ side writes away from the screen."""
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operator_count(runner: Runner) -> int:
    """Operators that one eager step dispatches, views included."""
    runner.ready()
    with _Count() as count:
        runner.step()
    return count.calls


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def differ(before: list[float], after: list[float]) -> bool:
    """Whether medians differ by more than the spread: quartile ranges apart, and no range wider than the gap."""
    if min(len(before), len(after)) < 3:
        return False
    (a1, a2, a3), (b1, b2, b3) = quartiles(before), quartiles(after)
    return (a3 < b1 or b3 < a1) and abs(b2 - a2) > max(a3 - a1, b3 - b1)
