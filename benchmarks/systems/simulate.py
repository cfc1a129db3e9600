"""A pipeline by 1F1B, simulated: what the tensors that cross between stages cost in time and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """Between neighbouring stages, each way: ``bandwidth`` in bytes per second, ``latency`` in seconds."""

    name: str
    bandwidth: float
    latency: float

    def time(self, size: float) -> float:
        """Seconds for so many bytes."""
        return self.latency + size / self.bandwidth


def order(stage: int, stages: int, micro: int) -> list[tuple[str, int]]:
    """What a stage does, in order: forwards until the pipeline is full, then one backward and one forward in turns."""
    ahead = min(stages - stage - 1, micro)
    done = [("forward", m) for m in range(ahead)]
    for m in range(micro - ahead):
        done += [("forward", ahead + m), ("backward", m)]
    return done + [("backward", m) for m in range(micro - ahead, micro)]


def step_time(stages: int, micro: int, forward: float, sizes: Sequence[float], link: Link) -> float:
    """Seconds of a training step by 1F1B in which every stage takes ``forward``, and twice as long backward.

    Args:
        sizes: bytes that cross each border forward, and again backward as gradients, for one micro-batch. Transfers run
            beside the computation; those over one border in one direction wait for each other.
    """
    waiting = [order(s, stages, micro) for s in range(stages)]
    free, arrived = [0.0] * stages, {("forward", 0, m): 0.0 for m in range(micro)}
    busy: dict[tuple[str, int], float] = {}
    while any(waiting):
        for s in range(stages):
            while waiting[s] and (waiting[s][0][0], s, waiting[s][0][1]) in arrived:
                kind, m = waiting[s].pop(0)
                begun = max(free[s], arrived[kind, s, m])
                free[s] = end = begun + forward * (1 if kind == "forward" else 2)
                if kind == "forward" and s == stages - 1:
                    arrived["backward", s, m] = end
                    continue
                there = s + 1 if kind == "forward" else s - 1
                if there >= 0:
                    border = min(s, there)
                    sent = max(end, busy.get((kind, border), 0.0))
                    busy[kind, border] = sent + sizes[border] / link.bandwidth
                    arrived[kind, there, m] = sent + link.time(sizes[border])
    return max(free)


def borders(vectors: Callable[[int], float], layers: int, stages: int) -> list[float]:
    """Vectors of the stream's width that cross each border of equal stages, by how many blocks are done before it."""
    return [vectors(i * layers // stages) for i in range(1, stages)]
