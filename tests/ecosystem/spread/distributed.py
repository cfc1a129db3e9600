"""Several processes over gloo, and data parallel: every gradient is that of one process on the whole batch."""

from __future__ import annotations

import copy
import functools
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..tool import Make, hold_equal, step, stir, tool, trained

ROWS = torch.randint(3, 60, (8, 9), generator=torch.Generator().manual_seed(5))
"""A batch for all processes together: each takes its own equal part; the mean of their losses is the whole's."""

NEAR = 1e-5
"""What sums in another order may change, as a part of the largest value in a tensor: of a single number, such as the
mix of a delta site, that is what is left of a sum over all tokens and features."""


@dataclass(frozen=True)
class Trained(Make):
    """Models that have seen a training step, so that not every process captures one."""

    def __call__(self, std: float = 0.1, host: str = "llama") -> Any:
        return self.plain(host) if self.mode is None else stir(copy.deepcopy(_trained(self.mode, host)), std)


@functools.cache
def _trained(mode: str, host: str) -> Any:
    model = Make(mode).start(host)
    trained(model, ROWS[:2])
    return model.eval()


def processes(count: int, run: Callable[..., None], *given: Any) -> None:
    """``run(*given)`` in so many processes of one group; raises what the first to fail raised.

    A ``Make`` among what is given makes models that know a training step.
    """
    given = tuple(Trained(g.mode) if type(g) is Make else g for g in given)
    for make in given:
        if isinstance(make, Trained):
            make()
    with tempfile.TemporaryDirectory() as folder:
        start = {"args": (count, folder, run, given), "nprocs": count, "start_method": "fork"}
        try:
            torch.multiprocessing.start_processes(_member, **start)  # type: ignore[no-untyped-call]
        except torch.multiprocessing.ProcessRaisedException as error:
            if os.environ.get("RESFX_TRACEBACK"):
                raise
            said = re.split(r"\n(?=[\w.]+: |[\w.]+\n*$)", str(error))[-1]  # from the line that names the exception
            raise RuntimeError(f"in a process: {said}") from None


def _member(rank: int, count: int, folder: str, run: Callable[..., None], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    run(*given)
    dist.destroy_process_group()


def mine(part: int | None = None, parts: int | None = None) -> torch.Tensor:
    """The rows of this process, or of one of so many parts."""
    return ROWS.chunk(parts or dist.get_world_size())[dist.get_rank() if part is None else part]


def whole(value: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may hold a part."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def bare(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    for wrapped in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "module."):
        name = name.replace(wrapped, "")
    return name


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {bare(n): whole(p.grad).detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def mean(loss: torch.Tensor) -> torch.Tensor:
    """Of all processes."""
    loss = whole(loss).detach().clone()
    dist.all_reduce(loss)
    return loss / dist.get_world_size()


def by_parts(model: nn.Module, parts: int | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean loss and gradients of all parts of the batch, one after the other in this process."""
    parts = parts or dist.get_world_size()
    found = [step(model, mine(i, parts)) for i in range(parts)]
    gradients = {n: torch.stack([g[n].float() for _, g in found]).mean(0) for n in found[0][1]}
    model.zero_grad()
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].to(parameter.dtype, copy=True) if name in gradients else None
    return torch.stack([loss.float() for loss, _ in found]).mean(), gradients


def same_training(make: Make, model: nn.Module, within: float = NEAR, steps: int = 2) -> None:
    """Two steps of plain descent with a model that is spread over processes do what they do in one."""
    single = make().train()
    for i in range(steps):
        loss, expected = by_parts(single)
        model.zero_grad()
        got = model(input_ids=mine(), labels=mine(), use_cache=False).loss
        got.backward()
        hold_equal(loss, mean(got), within, f"loss of step {i}")
        same_gradients(expected, gradients(model), within, f"step {i}")
        descend_both(single, model, within)


@torch.no_grad()
def descend_both(single: nn.Module, model: nn.Module, within: float) -> None:
    """A step of both, which has to come to the same; then from exactly the same on, so that rounding does not grow."""
    descend(single)
    descend(model)
    found = {bare(n): whole(p) for n, p in model.named_parameters()}
    for name, parameter in single.named_parameters():
        hold_equal(parameter, found[name], within, f"{name} after a step")
        parameter.copy_(found[name])


def same_gradients(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], within: float, at: str) -> None:
    assert set(found) == set(expected), f"{at}: gradients of {sorted(set(found) ^ set(expected))}"
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        # Where terms cancel, what is left of a gradient has their rounding.
        scale = max(1.0, 1e-3 * largest / max(float(gradient.abs().max()), 1e-30))
        hold_equal(gradient, found[name], within * scale, f"{at}, gradient of {name}")


@torch.no_grad()
def descend(model: nn.Module, rate: float = 0.1) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter -= rate * parameter.grad


def _ddp(make: Make, options: dict[str, Any]) -> None:
    same_training(make, DistributedDataParallel(make().train(), **options))


@tool("DDP, two and four processes")
def ddp(make: Make) -> None:
    for count in (2, 4):
        processes(count, _ddp, make, {})


@tool("DDP, find_unused_parameters")
def ddp_unused(make: Make) -> None:
    processes(2, _ddp, make, {"find_unused_parameters": True})


@tool("DDP, static_graph, gradient_as_bucket_view")
def ddp_static(make: Make) -> None:
    processes(2, _ddp, make, {"static_graph": True, "gradient_as_bucket_view": True, "bucket_cap_mb": 0.01})


def _accumulated(make: Make) -> None:
    model = DistributedDataParallel(make().train())
    _, expected = by_parts(make().train(), 4)
    first, second = mine().chunk(2)
    with model.no_sync():
        (model(input_ids=first, labels=first, use_cache=False).loss / 2).backward()
    (model(input_ids=second, labels=second, use_cache=False).loss / 2).backward()
    same_gradients(expected, gradients(model), NEAR, "accumulated")


@tool("DDP, gradients accumulated under no_sync")
def ddp_accumulated(make: Make) -> None:
    processes(2, _accumulated, make)


def _compiled(make: Make) -> None:
    model = make().train()
    torch.compiler.reset()
    same_training(make, torch.compile(DistributedDataParallel(model), backend="aot_eager"))  # type: ignore[arg-type]


@tool("DDP compiled (aot_eager)", seconds=400)
def ddp_compiled(make: Make) -> None:
    processes(2, _compiled, make)


def _recomputed(make: Make) -> None:
    model = make().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    same_training(make, DistributedDataParallel(model))


@tool("DDP with gradient_checkpointing_enable()")
def ddp_recomputed(make: Make) -> None:
    processes(2, _recomputed, make)


def _generate(make: Make) -> None:
    model = DistributedDataParallel(make().eval()).module
    found = model.generate(mine(), max_new_tokens=4, do_sample=False)
    every = [torch.empty_like(found) for _ in range(dist.get_world_size())]
    dist.all_gather(every, found)
    hold_equal(make().generate(ROWS, max_new_tokens=4, do_sample=False), torch.cat(every), 0.0, "tokens")


@tool("DDP, generate() on every process's own rows")
def ddp_generate(make: Make) -> None:
    processes(2, _generate, make)
