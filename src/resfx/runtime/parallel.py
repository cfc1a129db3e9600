"""Models whose layers are split over processes: what generated code cannot keep of that is refused by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from resfx._torch import held_modules, held_parameters, is_compiling, positions_are_split
from resfx.errors import ResfxError
from resfx.methods.sequence.mixer import Mixer

_WHOLE = (nn.Parameter, torch.Tensor)


def refuse_split_positions(module: nn.Module, path: str) -> None:
    """Raise where a module that runs generated code is given a part of the positions of a sequence.

    ``SequenceParallel`` norms say so: it alone makes their weights distributed tensors of which every process has all.
    New modules have plain parameters, which would get the gradient of this process's positions alone, and mixers over
    positions would not see those of the others. ``context_parallel`` hands attention the others' positions, and nothing
    else: it is refused where there are mixers.

    Raises:
        ResfxError: naming the norm, or the mixer.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return  # nothing is split
    if not is_compiling() and positions_are_split():
        new = (m for level in module.__dict__["_resfx_new"].values() for m in level.modules())
        if mixer := next((m for m in new if isinstance(m, Mixer)), None):
            raise ResfxError(
                f"cannot run {path or type(module).__name__} on a part of a sequence",
                f"{type(mixer).__name__} mixes over positions, and context_parallel leaves it those of this process",
                "a method without mixers over positions, or another way to share out the work",
            )
    for name, child in held_modules(module).items():
        for parameter in held_parameters(child).values() if child is not None else ():
            if parameter is not None and type(parameter) not in _WHOLE and _is_replicated(parameter):
                raise ResfxError(
                    f"cannot run {path or type(module).__name__} on a part of a sequence",
                    f"{name!r} is parallelised over positions (SequenceParallel), new modules are not",
                    "leave norms and the stream out of the plan: columns and rows of projections may be split",
                )  # fmt: skip


def _is_replicated(parameter: Any) -> bool:
    placements: tuple[Any, ...] = getattr(parameter, "placements", ())  # of a torch.distributed.tensor.DTensor
    return bool(placements) and all(p.is_replicate() for p in placements)
