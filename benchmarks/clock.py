"""A clock for single operators on CUDA: the card's time alone, out of cache, and beside it the host's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

HEADS = 64  # flushes before a call, at most


class CudaClock:
    """Seconds that a card spends in a call, by events.

    Before each call a buffer of twice the second-level cache is written: once, so that no operand is in cache, and more
    often where the host takes longer to launch the call than that: the card then never waits for launches inside the
    events. What the host takes is a figure of its own, :attr:`host`.
    """

    def __init__(self, device: str) -> None:
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 2**26
        self.buffer = torch.empty(2 * max(cache, 2**25), dtype=torch.int8, device=device)
        self.heads: dict[Callable[[], Any], int] = {}
        self.host = 0.0
        self.buffer.zero_()
        begin, end = self._marks()
        begin.record()
        for _ in range(10):
            self.buffer.zero_()
        end.record()
        torch.cuda.synchronize()
        self.flush = begin.elapsed_time(end) / 10 / 1000

    def __call__(self, step: Callable[[], Any]) -> float:
        if step not in self.heads:
            self.heads[step] = min(HEADS, 1 + int(1.5 * self._launch(step) / self.flush))
            torch.cuda.synchronize()
        begin, end = self._marks()
        torch.cuda.synchronize()
        for _ in range(self.heads[step]):
            self.buffer.zero_()
        begin.record()
        self.host = self._launch(step)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    def _launch(self, step: Callable[[], Any]) -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    def _marks(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
