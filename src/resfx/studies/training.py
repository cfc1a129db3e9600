"""One model trained: AdamW, a warm-up and a cosine, the held-out loss on the way, and a checkpoint to go on from."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .tokens import Order


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        steps: optimizer steps.
        rate: the largest learning rate: reached linearly after ``warmup`` of the steps, then a cosine down to a tenth.
        first: number of the first batch: a graft goes on where the plain model's data ended.
        points: how often the held-out loss is taken, at even distances; also before the first step.
        decay: AdamW's weight decay, on the host's matrices only: what a new parameter's zero means its method knows.
    """

    steps: int
    rate: float
    first: int = 0
    points: int = 10
    warmup: float = 0.1
    decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * (0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def is_point(self, step: int) -> bool:
        """Whether the loss is taken after so many steps."""
        return step * self.points // self.steps > (step - 1) * self.points // self.steps


@dataclass
class Progress:
    """Where a run is: all that a checkpoint keeps beside weights and optimizer.

    Attributes:
        step: steps done.
        seconds: spent on them, without evaluations: of the processor, and by the clock.
        points: ``[step, held-out loss, training loss since the last point, processor seconds, clock seconds]``.
    """

    step: int = 0
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    points: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def train(
    model: nn.Module, recipe: Recipe, order: Order, held: Tensor, checkpoint: Path, every: float = 60.0,
    told: Callable[[Progress], None] = lambda progress: None,
) -> Progress:  # fmt: skip
    """Train in place, from the checkpoint if there is one; bit for bit as without a stop.

    Args:
        model: gives a ``loss`` for ``input_ids`` and ``labels``; in the mode in which it is to run throughout.
        held: windows ``(rows, length)`` for the held-out loss.
        checkpoint: a file that is written every so many seconds, and removed at the end by whoever keeps the result.
        told: called after every step.
    """
    optimizer, progress = optimizer_of(model, recipe), Progress()
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        progress = Progress(**kept["progress"])
    if not progress.points:
        progress.points.append([0, held_out_loss(model, held, order.batch), math.nan, 0.0, 0.0])
    saved = time.monotonic()
    while progress.step < recipe.steps:
        began = _now()
        progress.losses.append(_step(model, optimizer, recipe, order, progress.step))
        progress.seconds = [s + now - then for s, now, then in zip(progress.seconds, _now(), began, strict=True)]
        progress.step += 1
        if recipe.is_point(progress.step):
            mean = sum(progress.losses) / len(progress.losses)
            loss = held_out_loss(model, held, order.batch)
            progress.points.append([progress.step, loss, mean, *progress.seconds])
            progress.losses.clear()
        told(progress)
        if time.monotonic() - saved > every:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
            write_whole(checkpoint, functools.partial(torch.save, state))
            saved = time.monotonic()
    return progress


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with decay where the recipe says."""
    host = {n: p for n, p in model.named_parameters() if not n.startswith("resfx.") and p.dim() > 1}
    rest = [p for n, p in model.named_parameters() if n not in host]
    groups: list[dict[str, Any]] = [{"params": list(host.values()), "weight_decay": recipe.decay}]
    groups += [{"params": rest, "weight_decay": 0.0}] if rest else []
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=recipe.betas)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, order: Order, step: int) -> float:
    ids = order.at(recipe.first + step)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate_at(step)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def held_out_loss(model: nn.Module, held: Tensor, batch: int) -> float:
    """Mean loss over windows, in nats per token. Rows in the last batch count as many times as there are of them."""
    total = sum(model(input_ids=rows, labels=rows).loss.item() * len(rows) for rows in held.split(batch))
    return total / len(held)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """A file that is there whole or not at all, whatever stops the program."""
    part = path.with_name(f"{path.name}.part")
    write(part)
    os.replace(part, path)


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()
