"""Layers that are split over processes: what they are traced with, and what is said where that does not do."""

from __future__ import annotations

from torch import nn

from resfx._torch import held_parameters, pre_hooks
from resfx.errors import CaptureError


def is_split(module: nn.Module) -> bool:
    """Whether ``parallelize_module`` split a module's own weights: hooks make it run on parts of them.

    What FSDP shards is whole when it runs.
    """
    hooks = [getattr(hook, "__module__", "") for hook in pre_hooks(module)]
    return any(name.startswith("torch.distributed.tensor") for name in hooks) and _split_weight(module) is not None


def _split_weight(module: nn.Module) -> str | None:
    for name, parameter in held_parameters(module).items():
        if any(p.is_shard() for p in getattr(parameter, "placements", ())):
            return name
    return None


def refuse_split(tree: nn.Module, cls: type, error: CaptureError) -> None:
    """Raise, in place of an error of a capture, where layers are split: neither whole weights nor the parts that this
    process has go with what the call brings along.

    Raises:
        CaptureError: naming a weight that is split.
    """
    for path, module in tree.named_modules():
        if is_split(module):
            raise CaptureError(
                f"cannot capture a call of {cls.__name__}, whose layers are split over processes",
                f"neither all nor this process's part of {path}.{_split_weight(module)} fits: {error.found}",
                "calls without labels or without a cache; or shards that are whole when they run (fully_shard)",
            ) from error
