"""The call a model is captured with, from the names in the signature of its ``forward``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

VOCAB = 99


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB - 1, (batch, length), generator=torch.Generator().manual_seed(seed))


def noise(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def inputs_of(model: nn.Module, changes: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for one call, from the names in the signature of ``forward``, then ``changes``.

    A change is a tuple (random numbers of that size), ``"ids 2 7"``, ``"ones 2 7"`` or ``"zeros 2 7"`` (integers),
    ``"image 4"`` (a prompt that holds four image tokens), ``None`` (leave it out) or the value itself.
    """
    names = inspect.signature(type(model).forward).parameters
    config: Any = model.config
    call: dict[str, Any] = {}
    if "input_ids" in names:
        call["input_ids"] = tokens(2, 7)
    if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", True):
        call["decoder_input_ids"] = tokens(2, 5, 1)
    if "pixel_values" in names:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or 32
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        call["pixel_values"] = noise(2, getattr(vision, "num_channels", 3) or 3, height, width)
    if "input_features" in names:
        audio = getattr(config, "audio_config", config)
        call["input_features"] = noise(2, getattr(audio, "num_mel_bins", 16), 40)
    if "input_values" in names:
        call["input_values"] = noise(2, 1200)
    if "use_cache" in names:
        call["use_cache"] = False
    call |= {name: value_of(change, config) for name, change in changes.items()}
    return {name: value for name, value in call.items() if value is not None}


def value_of(change: Any, config: Any) -> Any:
    """What a change of :func:`inputs_of` stands for."""
    if isinstance(change, tuple):
        return noise(*change)
    if not isinstance(change, str):
        return change
    kind, *rest = change.split()
    size = [int(n) for n in rest]
    if kind == "image":
        prompt = tokens(2, size[0] + 4)
        prompt[:, 2 : 2 + size[0]] = next(
            t for n in ("image_token_id", "image_token_index") if (t := getattr(config, n, None)) is not None
        )
        return prompt
    return {"ids": lambda: tokens(*size), "ones": lambda: torch.ones(*size, dtype=torch.long),
            "zeros": lambda: torch.zeros(*size, dtype=torch.long)}[kind]()  # fmt: skip
