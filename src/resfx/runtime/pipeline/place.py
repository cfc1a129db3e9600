"""Stages as :mod:`torch.distributed.pipelining` takes them, with what a process keeps for its later ones.

Apart, because torch.distributed.pipelining takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage

from resfx.errors import OptionError, VariantError
from resfx.methods.options import refuse_wrong_arguments

from .stage import Stage
from .store import Store

OTHERWISE = "ScheduleInterleaved1F1B or ScheduleLoopedBFS, or resfx.split without ranks="


def place(
    stages: Sequence[Stage], ranks: int | None, device: torch.device | str, group: dist.ProcessGroup | None
) -> list[PipelineStage]:
    """The stages of this process: every ``ranks``-th, or every one that ``group`` leaves to it."""
    refuse_wrong_arguments(place, device=device, group=group)
    asked = "cannot place the stages"
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise OptionError(asked, str(error).splitlines()[0], "device='cuda', or 'cpu'") from error
    if not dist.is_initialized():
        raise OptionError(
            asked, "torch.distributed has no processes yet", "torch.distributed.init_process_group() first"
        )
    mine, count = dist.get_rank(group), dist.get_world_size(group)
    if ranks not in (None, count):
        raise OptionError(f"cannot place stages in {count} processes", f"they were split for {ranks}",
                          f"resfx.split(..., ranks={count})")  # fmt: skip
    numbers = range(mine, len(stages), count)
    if ranks is None:
        return [PipelineStage(stages[i], i, len(stages), device, group=group) for i in numbers]
    store = Store()
    return [KeepingStage(stages[i], i, len(stages), device, group, store) for i in numbers]


class KeepingStage(PipelineStage):
    """A stage that reads what earlier stages of its process have kept of the same micro-batch."""

    def __init__(
        self, stage: Stage, number: int, count: int, device: torch.device, group: dist.ProcessGroup | None, store: Store
    ) -> None:
        self._store, stage.store = store, store
        super().__init__(stage, number, count, device, group=group)

    @property
    def stage_index_to_group_rank(self) -> dict[int, int]:
        """Which process each stage is in; a schedule sets it."""
        return self._ranks

    @stage_index_to_group_rank.setter
    def stage_index_to_group_rank(self, ranks: dict[int, int]) -> None:
        if any(rank != stage % self.group_size for stage, rank in ranks.items()):
            raise OptionError("cannot run these stages by this schedule",
                              f"it puts stage i into process {list(ranks.values())}[i]; what processes keep was found "
                              f"for i % {self.group_size}", OTHERWISE)  # fmt: skip
        self._ranks = ranks

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """As torch's, with the micro-batch known to the stage."""
        self._store.microbatch = fwd_chunk_id
        try:
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        finally:
            self._store.microbatch = None

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """As torch's.

        Raises:
            VariantError: by a schedule that takes gradients of inputs and of weights apart: it asks for those of what
                was received alone, and what was kept would get none.
        """
        if not full_backward:
            raise VariantError("cannot run these stages by a schedule that splits backward passes",
                               "what a process keeps for its later stages gets its gradient in whole ones",
                               OTHERWISE)  # fmt: skip
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
