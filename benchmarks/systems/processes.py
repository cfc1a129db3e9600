"""Processes of a pipeline on this machine: forked, so that models are made once."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist


def in_processes(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]], seconds: float = 300) -> None:
    """Run ``target`` with each of ``arguments`` in a process of its own, and wait. Nothing may have run backward here.

    Raises:
        RuntimeError: if one ends otherwise than well, or not in time.
    """
    children = [multiprocessing.get_context("fork").Process(target=target, args=args) for args in arguments]
    for child in children:
        child.start()
    until = time.monotonic() + seconds
    while any(child.is_alive() for child in children) and time.monotonic() < until:
        time.sleep(0.05)
        if any(child.exitcode for child in children):
            break
    ended = [child.exitcode for child in children]
    for child in children:
        child.kill()
        child.join()
    if any(code != 0 for code in ended):
        raise RuntimeError(f"processes ended with {ended}")


def join(rank: int, count: int, folder: str) -> None:
    """Be one of several that talk over gloo; ``folder`` is where they meet."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{count}", rank=rank, world_size=count)
