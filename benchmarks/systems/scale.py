"""The simulation at scale: steps of a large model's pipelines over those of the plain model's."""

from __future__ import annotations

from .carried import FORMULAS
from .simulate import Link, step_time

LINKS = (Link("NVLink, 450 GB/s", 450e9, 5e-6), Link("InfiniBand, 50 GB/s", 50e9, 1e-5))
LAYERS, WIDTH, TOKENS, MICRO, FLOPS = 128, 8192, 4096, 256, 4e14
"""The simulated model, a micro-batch's tokens, micro-batches, and what a device computes in a second."""
VECTOR = 2 * WIDTH * TOKENS
BLOCK = 24 * WIDTH**2 * TOKENS / FLOPS
"""Seconds of a block for a micro-batch, forward."""
EACH = 4
"""Stages of a process where they are interleaved."""


def ratio(name: str, ranks: int, link: Link, each: int = 1, keeps: bool = False) -> float:
    """Step time over the plain model's in the same pipeline, without the method's own arithmetic."""
    stages = ranks * each
    forward = [BLOCK * LAYERS / stages] * stages
    backward = [2 * seconds for seconds in forward]
    ours, plain = (
        step_time(ranks, MICRO, forward, backward, [v * VECTOR for v in crossing], link)
        for crossing in (FORMULAS[name].crossing(LAYERS, stages, ranks if keeps else None), [1] * (stages - 1))
    )
    return ours / plain


def held(name: str, stages: int) -> float:
    """Gigabytes that the stage which holds most keeps of what it received, for backward passes to come."""
    crossing = FORMULAS[name].crossing(LAYERS, stages)
    return max(v * VECTOR * (stages - stage) for stage, v in enumerate(crossing, 1)) / 1e9
