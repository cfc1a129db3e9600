"""Steps of pipelines over gloo on this machine, beside what the simulation says of them."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleInterleaved1F1B

import resfx

from .carried import FORMULAS, METHODS
from .processes import in_processes, join
from .simulate import Link, step_time

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8,
                         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
ROWS, LENGTH, MICRO = 2, 64, 8
"""Of a micro-batch, and the micro-batches of a step."""
ROUNDS, COSTS_ROUNDS = 11, 25
"""How often each pipeline's step is timed, and each stage alone."""
VECTOR = 4 * SIZES["hidden_size"] * ROWS * LENGTH
SETUPS: dict[str, tuple[int, int, bool]] = {
    "2 processes": (2, 2, False), "4 processes": (4, 4, False),
    "2 processes, 2 stages each": (2, 4, False), "the same, kept": (2, 4, True),
}  # fmt: skip
"""Processes, stages, and whether a process keeps what it has."""
NAMES = ("(plain)", "ddl", "mhc", "short_swa", "attnres", "attnres, blocks of 8", "denseformer", "mudd", "depth_read")
"""Methods of every kind; all of them would keep a machine of two cores busy for half an hour."""
Costs = tuple[list[float], list[float]]


def ids(rows: int) -> torch.Tensor:
    return torch.randint(64, (rows, LENGTH), generator=torch.Generator().manual_seed(0))


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def splits(name: str) -> dict[str, resfx.Stages]:
    """A Llama with the method, in the stages of every setup."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model, method = LlamaForCausalLM(LlamaConfig(**SIZES)), METHODS[name]
    new = model if method is None else resfx.rewrite(model, method, args=(ids(ROWS),), check=False)
    made = {(s, k): resfx.split(new, s, args=(ids(ROWS),), ranks=r if k else None) for r, s, k in SETUPS.values()}
    return {setup: made[s, k] for setup, (_, s, k) in SETUPS.items()}


# -- what a stage computes, in one process ----------------------------------------------------------------------------


def costs(stages: resfx.Stages) -> Costs:
    """Processor time of every stage for a micro-batch, forward and backward."""
    done, given, forward = [], (ids(ROWS),), []
    for stage in stages:
        begun = time.process_time()
        out = stage(*given)
        out = out if isinstance(out, tuple) else (out,)
        if stage is stages[-1]:
            out = (loss_of(out[0], ids(ROWS)),)
        forward.append(time.process_time() - begun)
        done.append((given, out))
        given = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in out)
    backward, gradients = [], [None]
    for given, out in reversed(done):
        begun = time.process_time()
        torch.autograd.backward(out, gradients)
        backward.append(time.process_time() - begun)
        gradients = [x.grad for x in given]
    return forward, backward[::-1]


def all_costs(made: dict[str, dict[str, resfx.Stages]], path: str, realtime: bool) -> None:
    """The median for every method and setup, taken in turns; left in a file."""
    torch.set_num_threads(1)
    if realtime:
        prefer()
    seen: dict[tuple[str, int], list[Costs]] = {}
    for _ in range(COSTS_ROUNDS + 1):  # the first only warms up
        for name, split in made.items():
            for setup in ("2 processes", "4 processes"):
                seen.setdefault((name, len(split[setup])), []).append(costs(split[setup]))
    torch.save({key: tuple([statistics.median(c) for c in zip(*side, strict=True)]
                           for side in zip(*found[1:], strict=True)) for key, found in seen.items()}, path)  # fmt: skip


# -- steps of all pipelines in turns ----------------------------------------------------------------------------------


def stepper(stages: resfx.Stages) -> Callable[[], None]:
    """A training step of this process's stages."""
    mine: list[Any] = stages.pipeline_stages("cpu")
    schedule: Any = (Schedule1F1B(mine[0], MICRO, loss_fn=loss_of) if len(mine) == 1 else
                     ScheduleInterleaved1F1B(mine, MICRO, loss_fn=loss_of))  # fmt: skip
    numbers = [stage.stage_index for stage in mine]
    given = {"target": ids(ROWS * MICRO)} if len(stages) - 1 in numbers else {}
    return lambda: schedule.step(*([ids(ROWS * MICRO)] if 0 in numbers else []), **given)


def timed(act: Callable[[], Any]) -> float:
    """Seconds until the last process is done."""
    dist.barrier()
    begun = time.perf_counter()
    act()
    took = torch.tensor(time.perf_counter() - begun, dtype=torch.float64)
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took)


def prefer() -> None:
    """Compute before this machine's other work, for which a busy one would have us wait most of a step.

    Raises:
        PermissionError: where the system does not let us.
    """
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def in_group(rank: int, count: int, made: dict[str, dict[str, resfx.Stages]], folder: str, realtime: bool) -> None:
    """One process: steps of all methods in turns; the times are left in a file."""
    if realtime:
        prefer()
    join(rank, count, folder)
    setups = [setup for setup, (ranks, _, _) in SETUPS.items() if ranks == count]
    steps = {(name, setup): stepper(split[setup]) for name, split in made.items() for setup in setups}
    for step in steps.values():
        step()
    times = {key: list[float]() for key in steps}
    for _ in range(ROUNDS):
        for key, step in steps.items():
            times[key].append(timed(step))
    wire = link() if count == 2 else None
    if rank == 0:
        torch.save(times, f"{folder}/times{count}")
        if wire:
            torch.save(wire, f"{folder}/link")
    dist.destroy_process_group()


def link() -> tuple[float, float]:
    """Bandwidth and latency between two processes, by tensors sent there and back."""
    rank, seconds = dist.get_rank(), []
    for size in (1, 1 << 20):
        tensor, took = torch.zeros(size), []
        for _ in range(30):
            begun = time.perf_counter()
            for sender in (0, 1):
                dist.send(tensor, 1 - rank) if sender == rank else dist.recv(tensor, 1 - rank)
            took.append((time.perf_counter() - begun) / 2)
        seconds.append(statistics.median(took))
    return 4 * (1 << 20) / (seconds[1] - seconds[0]), seconds[0]


# -- both -------------------------------------------------------------------------------------------------------------


def measured(names: Sequence[str] = NAMES, realtime: bool = False) -> dict[str, Any]:
    """For every method and setup: the step over the plain pipeline's, measured (median, quartiles) and simulated.

    Args:
        realtime: take the processors before this machine's other work (``SCHED_RR``).
    """
    made = {name: splits(name) for name in names}
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        in_processes(all_costs, [(made, f"{folder}/costs", realtime)], 1800)
        found: dict[tuple[str, int], Costs] = torch.load(f"{folder}/costs")
        times: dict[tuple[str, str], list[float]] = {}
        for count in (2, 4):
            in_processes(in_group, [(rank, count, made, folder, realtime) for rank in range(count)], 3600)
            times |= torch.load(f"{folder}/times{count}")
        wire = Link("gloo", *torch.load(f"{folder}/link"))
    rows: dict[str, Any] = {}
    for name in names:
        rows[name] = {}
        for setup, (ranks, stages, keeps) in SETUPS.items():
            said = {n: simulated(n, found[n, stages], ranks, keeps, wire, cores) for n in (name, "(plain)")}
            ratios = [ours / plain for ours, plain in zip(times[name, setup], times["(plain)", setup], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rows[name][setup] = {
                "measured": middle, "quartiles": [low, high], "simulated": said[name] / said["(plain)"],
                "seconds": statistics.median(times[name, setup]), "simulated_seconds": said[name],
            }  # fmt: skip
    at = {"cores": cores, "rounds": ROUNDS, "realtime": realtime, "bandwidth": wire.bandwidth, "latency": wire.latency}
    return {**at, "rows": rows}


def simulated(name: str, cost: Costs, ranks: int, keeps: bool, wire: Link, cores: int) -> float:
    """Seconds of a step by what its stages compute and by the formula of what crosses."""
    crossing = FORMULAS[name].crossing(SIZES["num_hidden_layers"], len(cost[0]), ranks if keeps else None)
    return step_time(ranks, MICRO, *cost, [v * VECTOR for v in crossing], wire, cores)
