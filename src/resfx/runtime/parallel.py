"""Models whose layers are split over processes: what generated code cannot keep of that is refused by name."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from resfx._torch import held_modules, held_parameters, is_compiling
from resfx._torch.distributed import is_distributed, positions_are_split
from resfx.errors import CaptureError, ResfxError
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
        if child is not None and _splits_positions(child):
            raise ResfxError(
                f"cannot run {path or type(module).__name__} on a part of a sequence",
                f"{name!r} is parallelised over positions (SequenceParallel), new modules are not",
                "leave norms and the stream out of the plan: columns and rows of projections may be split",
            )


def _splits_positions(module: nn.Module) -> bool:
    parameters = [p for p in held_parameters(module).values() if p is not None]
    if not parameters:  # a norm without a gain, a dropout
        return is_distributed(module) and not held_modules(module)
    return any(type(p) not in _WHOLE and _is_replicated(p) for p in parameters)


def _is_replicated(parameter: Any) -> bool:
    placements: tuple[Any, ...] = getattr(parameter, "placements", ())  # of a torch.distributed.tensor.DTensor
    return bool(placements) and all(p.is_replicate() for p in placements)


def refuse_weights_elsewhere(tree: nn.Module, name: str, sharded: bool) -> None:
    """Raise for a model that cannot be captured, since its weights come to its modules when these are called only.

    Args:
        name: of what would be captured.
        sharded: whether ``fully_shard`` counts: a capture of a call works with it, a rewrite does not.

    Raises:
        CaptureError: naming the module and what holds its weights.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kinds = (fsdp.FullyShardedDataParallel, *((fsdp.FSDPModule,) if sharded else ())) if fsdp is not None else ()
    for path, module in tree.named_modules():
        holder = type(module).__name__ if isinstance(module, kinds) else "a hook of accelerate that offloads"
        if isinstance(module, kinds) or _offloads(module):
            raise CaptureError(
                f"cannot capture {name}", f"the weights of {path or 'the whole'} are not with it ({holder})",
                "rewrite the model, and make one call of each kind, before it is sharded, dispatched or offloaded",
            )  # fmt: skip


def accelerates_hook(module: nn.Module) -> Any:
    """What accelerate put around a module's ``forward``; ``None`` where it did not."""
    return vars(module).get("_hf_hook")


def _offloads(module: nn.Module) -> bool:
    """Whether accelerate brings a module's weights when it is called, and takes them away again."""
    hook = accelerates_hook(module)
    return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", (hook,)))
