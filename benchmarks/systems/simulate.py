"""A pipeline, simulated: what the tensors that cross between stages cost in time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

Action = tuple[str, int, int]
"""``"forward"`` or ``"backward"``, of a stage and a micro-batch."""


@dataclass(frozen=True)
class Link:
    """Between neighbouring stages, each way: ``bandwidth`` in bytes per second, ``latency`` in seconds."""

    name: str
    bandwidth: float
    latency: float

    def time(self, size: float) -> float:
        """Seconds for so many bytes."""
        return self.latency + size / self.bandwidth


def one_f_one_b(rank: int, ranks: int, stages: int, micro: int) -> deque[Action]:
    """What a process does, in order: forwards until the pipeline is full, then one forward and one backward in turns.

    With several stages a process it is the interleaved schedule (Narayanan et al., arXiv 2104.04473): rounds of
    ``ranks`` micro-batches through its first stage, then its second, and backwards from the last.
    """
    each = stages // ranks
    round_of = [
        (visit, m) for first in range(0, micro, ranks) for visit in range(each)
        for m in range(first, min(first + ranks, micro))
    ]  # fmt: skip
    forwards = [("forward", visit * ranks + rank, m) for visit, m in round_of]
    backwards = [("backward", (each - 1 - visit) * ranks + rank, m) for visit, m in round_of]
    ahead = (each - 1) * ranks + 2 * (ranks - 1 - rank) if each > 1 else ranks - 1 - rank
    ahead = min(ahead, len(forwards))
    turns = [action for pair in zip(forwards[ahead:], backwards, strict=False) for action in pair]
    return deque([*forwards[:ahead], *turns, *backwards[len(forwards) - ahead :]])


def step_time(
    ranks: int, micro: int, forward: Sequence[float], backward: Sequence[float], sizes: Sequence[float], link: Link,
    cores: float = float("inf"),
) -> float:  # fmt: skip
    """Seconds of a training step by 1F1B, stage ``i`` in process ``i % ranks``.

    Args:
        forward, backward: seconds that each stage computes for one micro-batch.
        sizes: bytes that cross each border forward, and again backward as gradients, for one micro-batch. Transfers run
            beside the computation; those over one border in one direction wait for each other.
        cores: how many processes compute at full speed; more of them share that evenly.
    """
    stages = len(forward)
    waiting = [one_f_one_b(rank, ranks, stages, micro) for rank in range(ranks)]
    arrived: set[Action] = {("forward", 0, m) for m in range(micro)}
    coming: list[tuple[float, Action]] = []  # when it arrives
    running: list[tuple[float, Action]] = []  # when it ends, in the time of a process that computes
    working, busy = [False] * ranks, dict[tuple[str, int], float]()
    now = spent = 0.0  # spent: the time of a process that computes, which all share

    def begin(rank: int) -> None:
        if waiting[rank] and not working[rank] and waiting[rank][0] in arrived:
            kind, stage, _ = action = waiting[rank].popleft()
            working[rank] = True
            heapq.heappush(running, (spent + (forward if kind == "forward" else backward)[stage], action))

    def send(kind: str, stage: int, m: int) -> None:
        there = stage + (1 if kind == "forward" else -1)
        if there == stages:
            arrived.add(("backward", stage, m))
        elif there >= 0:
            border = min(stage, there)
            begun = max(now, busy.get((kind, border), 0.0))
            busy[kind, border] = begun + sizes[border] / link.bandwidth
            heapq.heappush(coming, (begun + link.time(sizes[border]), (kind, there, m)))

    begin(0)
    while running or coming:
        speed = min(1.0, cores / len(running)) if running else 1.0
        ends = now + (running[0][0] - spent) / speed if running else float("inf")
        if coming and coming[0][0] <= ends:
            at, action = heapq.heappop(coming)
            spent, now = spent + (at - now) * speed, at
            arrived.add(action)
        else:
            spent, action = heapq.heappop(running)
            now = ends
            working[action[1] % ranks] = False
            send(*action)
        begin(action[1] % ranks)
    return now
