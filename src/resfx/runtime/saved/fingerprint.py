"""What a base model is and what it holds beside its parameters: enough to know it again when a save is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from resfx.errors import SaveError


def fingerprint(model: nn.Module, content: str | None = None) -> dict[str, Any]:
    """What a base model is: its parameters' names and shapes, and a digest of their values.

    Args:
        content: the digest, where it is had without reading the values.

    Raises:
        SaveError: if parameters are split over processes.
    """
    structure, values = hashlib.sha256(), hashlib.sha256()
    count = tensors = 0
    for name, parameter in model.named_parameters():
        if is_new(name):
            continue
        if hasattr(parameter, "full_tensor"):  # a distributed tensor
            raise SaveError(
                f"cannot save or load this {type(model).__name__}", f"{name} is split over processes",
                "save and load before it is split, or use torch.distributed.checkpoint",
            )  # fmt: skip
        structure.update(f"{name} {tuple(parameter.shape)}\n".encode())
        if content is None:
            values.update(_sample(parameter))
        count += parameter.numel()
        tensors += 1
    return {"structure": structure.hexdigest(), "content": content or values.hexdigest(), "parameters": count,
            "tensors": tensors}  # fmt: skip


def _sample(value: torch.Tensor) -> bytes:
    """Some 4096 values of a tensor as bytes; none of a tensor without values."""
    if value.is_meta:
        return b""
    flat = (torch.view_as_real(value.detach()) if value.is_complex() else value.detach()).flatten()
    return flat[:: max(1, flat.numel() // 4096)].float().contiguous().cpu().numpy().tobytes()


def persistent_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that a ``state_dict`` holds, by name."""
    state = module.state_dict()
    return {n: state[n] for n, _ in module.named_buffers() if n in state}


def digests(module: nn.Module) -> dict[str, str]:
    """A digest of every host buffer that no ``state_dict`` holds (tables, masks)."""
    state = module.state_dict()
    rest = {n: b for n, b in module.named_buffers() if n not in state and not is_new(n)}
    return {n: hashlib.sha256(f"{tuple(b.shape)}".encode() + _sample(b)).hexdigest() for n, b in rest.items()}


def types_of(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The types of buffers by name, as ``"float32"``."""
    return {n: str(module.get_buffer(n).dtype).removeprefix("torch.") for n in names}


def is_new(name: str) -> bool:
    """Whether a parameter or buffer came with a rewrite."""
    return name.startswith("resfx.")
