"""Every method in pipelines of several processes against one process: ``python -m tests.pipelines``.

Losses and gradients of a step by GPipe, by 1F1B, and by interleaved 1F1B with two stages in every process, once as
stages send all that is read behind them and once with what processes keep, in 2 and in 4 processes over gloo. Written
to ``docs/systems/equal.json``, from which ``make systems`` makes ``docs/systems.md``. Nothing is asserted here beyond
what is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from hosts import tokens
from hosts.made import randomise
from torch import nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from transformers import LlamaConfig, LlamaForCausalLM

import resfx
from benchmarks.forms import configs
from benchmarks.systems.processes import in_processes, join

DATA = Path(__file__).parents[1] / "docs" / "systems" / "equal.json"
BLOCKS, VOCAB, MICRO = 8, 64, 4
DOUBLE, CLOSE = ", float64", 1e-6
"""Behind the name of a method whose row is made again in float64, and the difference above which it is."""
SCHEDULES: dict[str, tuple[int, bool, Callable[..., Any]]] = {
    "GPipe": (1, False, ScheduleGPipe), "1F1B": (1, False, Schedule1F1B),
    "interleaved": (2, False, ScheduleInterleaved1F1B), "interleaved, kept": (2, True, ScheduleInterleaved1F1B),
}  # fmt: skip
"""Stages in every process, whether it keeps what it has for the later ones, and the schedule."""
Gradients = dict[str, torch.Tensor]


def model() -> nn.Module:
    """A Llama of eight blocks, 32 wide."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1,
             "vocab_size": VOCAB, "num_hidden_layers": BLOCKS}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def batch() -> torch.Tensor:
    """Two rows for every micro-batch."""
    return tokens(2 * MICRO, 8) % VOCAB


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Of the tokens themselves."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


def by_schedule(mine: list[Any], schedule: Callable[..., Any]) -> tuple[Gradients, list[float]]:
    """Gradients of this process's stages after a step, and the losses that it sees."""
    takes_one = schedule is not ScheduleInterleaved1F1B
    step, losses = schedule(mine[0] if takes_one else mine, MICRO, loss_fn=loss_of).step, []
    numbers, ids, count = [stage.stage_index for stage in mine], batch(), mine[0].num_stages
    given = {"target": ids, "losses": losses} if count - 1 in numbers else {}
    if 0 in numbers or any(stage.submod.inputs for stage in mine):
        given["input_ids"] = ids
    step(**given)
    found = {n: p.grad for stage in mine for n, p in stage.submod.named_parameters() if p.grad is not None}
    return found, [loss.item() for loss in losses]


def in_group(rank: int, count: int, split: dict[str, resfx.Stages], folder: str) -> None:
    """One process of a pipeline: a step by every schedule, left in a file."""
    join(rank, count, folder)
    found = {}
    for name, stages in split.items():
        mine = stages.pipeline_stages("cpu")
        for stage in mine:
            stage.submod.zero_grad()
        found[name] = by_schedule(mine, SCHEDULES[name][2])
        found[name] = ({n: g.clone() for n, g in found[name][0].items()}, found[name][1])
    torch.save(found, f"{folder}/{count}-{rank}")
    dist.destroy_process_group()


def alone(whole: nn.Module, folder: str) -> None:
    """The same step in one process."""
    losses = []
    for ids in batch().chunk(MICRO):
        loss = loss_of(whole(input_ids=ids, use_cache=False).logits, ids)
        (loss / MICRO).backward()
        losses.append(loss.item())
    torch.save(({n: p.grad for n, p in whole.named_parameters() if p.grad is not None}, losses), f"{folder}/alone")


def row(label: str, counts: tuple[int, ...] = (2, 4)) -> dict[str, Any]:
    """Of one method, by number of processes and schedule: the largest difference to one process.

    ``loss`` is relative; ``gradient`` is that of any parameter, relative to the largest entry of its gradient.
    """
    ids, method = batch()[:2], label.removesuffix(DOUBLE)
    new: Any = model().double() if label.endswith(DOUBLE) else model()
    if method != "(plain)":
        new = resfx.rewrite(new, configs()[method], args=(ids,), check=False)
        randomise(new)
    made: dict[tuple[int, int | None], resfx.Stages] = {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        in_processes(alone, [(new, folder)])
        want, losses = torch.load(f"{folder}/alone")
        for count in counts:
            split = {}
            for name, (each, keeps, _) in SCHEDULES.items():
                key = (count * each, count if keeps else None)
                if key not in made:
                    made[key] = resfx.split(new, key[0], args=(ids,), ranks=key[1])
                split[name] = made[key]
            in_processes(in_group, [(rank, count, split, folder) for rank in range(count)])
            parts = [torch.load(f"{folder}/{count}-{rank}") for rank in range(count)]
            for name in split:
                found[f"{count}, {name}"] = differences([part[name] for part in parts], want, losses)
    return found


def differences(parts: list[tuple[Gradients, list[float]]], want: Gradients, losses: list[float]) -> dict[str, Any]:
    """What the processes found against what one did; parameters that several stages hold add up."""
    got: Gradients = {}
    for gradients, _ in parts:
        for name, gradient in gradients.items():
            got[name] = got[name] + gradient if name in got else gradient
    assert got.keys() == want.keys(), sorted(got.keys() ^ want.keys())
    (seen,) = [found for _, found in parts if found]
    return {
        "loss": max(abs(a - b) / abs(b) for a, b in zip(seen, losses, strict=True)),
        "gradient": max(float((got[n] - g).abs().max() / g.abs().max().clamp_min(1e-30)) for n, g in want.items()),
    }


def attempt(label: str) -> dict[str, Any]:
    """The row, or why there is none."""
    try:
        return row(label)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", help="a few; the others stay as they were")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = json.loads(DATA.read_text()) if DATA.exists() else {}
    DATA.parent.mkdir(exist_ok=True)
    for label in ["(plain)", *configs()]:
        if not options.methods or label in options.methods:
            for name in (label, label + DOUBLE):
                if name == label or worst(rows[label]) > CLOSE:
                    rows[name] = attempt(name)
                    print(name, rows[name], flush=True)
                    DATA.write_text(json.dumps(rows, indent=1) + "\n")


def worst(found: dict[str, Any]) -> float:
    """The largest difference of a gradient in a row."""
    return max((cell["gradient"] for cell in found.values() if isinstance(cell, dict)), default=0.0)


if __name__ == "__main__":
    main()
