"""What crosses between stages: as :func:`resfx.split` reports it, and as it is sent over gloo."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import Schedule1F1B, ScheduleInterleaved1F1B

import resfx

from .carried import FORMULAS, METHODS
from .processes import in_processes, join

WIDTH, LAYERS, ROWS, LENGTH, MICRO = 32, 8, 8, 8, 4
RANKS = 2
STEP = 4 * WIDTH * ROWS * LENGTH
"""Bytes of a vector of the stream's width for every token of a step."""


def counted(names: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """For every method: vectors at every border, sent anew and with what two processes keep, by formula and by split;
    and bytes of a step, by formula and sent: in two stages, and in four that two processes take in turns."""
    return {name: _row(name) for name in names}


def _row(name: str) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    method, carried, ids = METHODS[name], FORMULAS[name], torch.zeros(ROWS // MICRO, LENGTH, dtype=torch.long)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48))  # fmt: skip
    new = model if method is None else resfx.rewrite(model, method, args=(ids,), check=False)
    split = lambda stages, ranks=None: resfx.split(new, stages, args=(ids,), ranks=ranks)
    return {
        "vectors": [vectors_at(split(LAYERS)), carried.crossing(LAYERS, LAYERS)],
        "vectors, kept": [vectors_at(split(LAYERS, RANKS)), carried.crossing(LAYERS, LAYERS, RANKS)],
        "bytes": [sent(split(2)), STEP * sum(carried.crossing(LAYERS, 2))],
        "bytes, interleaved": [sent(split(4)), STEP * sum(carried.crossing(LAYERS, 4))],
        "bytes, kept": [sent(split(4, RANKS)), STEP * sum(carried.crossing(LAYERS, 4, RANKS))],
    }


def vectors_at(stages: resfx.Stages) -> list[float]:
    """Vectors that cross each border, as split reports them."""
    return [sum(c.bytes_per_token for c in border) / (4 * WIDTH) for border in stages.borders]


def sent(stages: resfx.Stages) -> list[int]:
    """Bytes that two processes send in a training step: forward and back."""
    with tempfile.TemporaryDirectory() as folder:
        in_processes(_send, [(rank, stages, folder) for rank in range(2)])
        parts = [torch.load(f"{folder}/sent{rank}") for rank in range(2)]
    return [sum(part[way] for part in parts) for way in ("forward", "back")]


def _send(rank: int, stages: resfx.Stages, folder: str) -> None:
    warnings.simplefilter("ignore")
    join(rank, 2, folder)
    found = {"forward": 0, "back": 0}
    mine: list[Any] = stages.pipeline_stages("cpu")
    for stage in mine:
        for way, ops in ("forward", "get_fwd_send_ops"), ("back", "get_bwd_send_ops"):
            setattr(stage, ops, _counting(getattr(stage, ops), found, way))
    schedule: Any = (Schedule1F1B(mine[0], MICRO, loss_fn=_loss) if len(mine) == 1 else
                     ScheduleInterleaved1F1B(mine, MICRO, loss_fn=_loss))  # fmt: skip
    ids = torch.randint(64, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids} if rank == 0 or any(stage.submod.inputs for stage in mine) else {}
    schedule.step(**given, **({} if rank == 0 else {"target": ids}))
    torch.save(found, f"{folder}/sent{rank}")
    dist.destroy_process_group()


def _loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


def _counting(real: Any, found: dict[str, int], way: str) -> Any:
    def ops(number: int) -> list[Any]:
        given: list[Any] = real(number)
        found[way] += sum(op.tensor.nbytes for op in given)
        return given

    return ops
