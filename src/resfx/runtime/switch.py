"""A rewritten model with and without its methods: switched off for a while, taken away, or trained alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import nn

from resfx.passes.capture.clone import original_tree

from .module import Handle, rewriting_of
from .units import Unit


def units_of(module: nn.Module) -> list[Unit]:
    """What the modules of a tree run instead of their own code."""
    return [unit for m in module.modules() if (unit := m.__dict__.get("_resfx_unit")) is not None]


@contextlib.contextmanager
def disabled(module: Any) -> Iterator[Any]:
    """Inside, a rewritten model computes what the original does: its own code runs, the new parameters rest.

    Raises:
        ResfxError: if the module is not a rewritten one.
        VariantError: for a graph that the user captured: it has no code to go back to.
    """
    rewriting_of(module).refuse_without_code("switch the methods of")
    units = units_of(module)
    _count(units, 1)
    try:
        yield module
    finally:
        _count(units, -1)


_lock = threading.Lock()


def _count(units: list[Unit], by: int) -> None:
    """Blocks may overlap, in threads or generators: the last one left switches on again."""
    with _lock:
        for unit in units:
            unit.off += by


def original(module: Any) -> Any:
    """The model as it was before any rewrite: its own classes over the same parameters; buffers and hooks are copies.

    Raises:
        ResfxError: if the module is not a rewritten one.
        VariantError: for a graph that the user captured.
    """
    rewriting_of(module).refuse_without_code("undo the rewrite of")
    return original_tree(module)


def freeze_original(module: Any) -> Any:
    """Train the new parameters alone: every other parameter stops asking for a gradient. Returns ``module``.

    Raises:
        ResfxError: if the module is not a rewritten one.
    """
    new = set(Handle(module).new_parameters()) if rewriting_of(module) else set()
    for name, parameter in module.named_parameters():
        if name not in new:
            parameter.requires_grad_(False)
    return module


def trainable(module: Any) -> dict[str, int]:
    """Numbers of parameters: ``new`` and ``original``, and of each those that train: ``new_trainable``, ...

    Raises:
        ResfxError: if the module is not a rewritten one.
    """
    rewriting_of(module)
    counts = dict.fromkeys(("new", "new_trainable", "original", "original_trainable"), 0)
    for name, parameter in module.named_parameters():
        kind = "new" if name.startswith("resfx.") else "original"
        counts[kind] += parameter.numel()
        counts[f"{kind}_trainable"] += parameter.numel() * parameter.requires_grad
    return counts
