"""What is known of transformers beyond its documented names: nothing else in the library knows any of it.

The package is not imported: what is here acts on the user's own objects, and holds for models that never heard of it.
``tests/borrowed.py`` says which of it an installed version has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

CACHE_LAYERS = "layers"
"""Where a cache keeps its layers: a list, of which a host addresses its own by number."""

LAYER_KEYS = "keys"
"""Where a layer keeps its keys, ``(batch, heads, length, width)``."""


def is_recomputing(tree: nn.Module) -> bool:
    """Whether a Hugging Face model was told to recompute activations."""
    if not getattr(type(tree), "supports_gradient_checkpointing", False):
        return False
    flags = [m.__dict__.get("gradient_checkpointing", False) for m in tree.modules()]  # a list: the compiler traces it
    return any(flags)


def host_function(tree: nn.Module, name: str) -> Callable[..., Any] | None:
    """What the host would recompute a block with: its layer says so, or the nearest module around it that has a say."""
    parts = name.split(".")
    for size in range(len(parts), -1, -1):
        module = tree.get_submodule(".".join(parts[:size]))
        flag = module.__dict__.get("gradient_checkpointing")
        if flag is not None:
            return module.__dict__.get("_gradient_checkpointing_func") if flag else None
    return None


@contextmanager
def traced_plainly(tree: nn.Module) -> Iterator[None]:
    """Inside, Hugging Face layers that recompute activations just run: a graph is cut into blocks afterwards."""
    name = "_gradient_checkpointing_func"
    held = [(m, m.__dict__[name]) for m in tree.modules() if name in m.__dict__]
    try:
        for module, _ in held:
            module.__dict__[name] = _plainly
        yield
    finally:
        for module, function in held:
            module.__dict__[name] = function


def _plainly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args)


def kept_functions(tree: nn.Module) -> list[tuple[Any, str]]:
    """The makers of attention masks that a model's own files call, as ``(module, name)``.

    In eager mode they look at the values of tensors and often return nothing, so that attention takes its fast kernels;
    traced, they return a mask. A rewritten model calls them as they are.
    """
    found = []
    for name in dict.fromkeys(type(m).__module__ for m in tree.modules()):
        source = sys.modules.get(name)
        for attribute, value in vars(source).items() if source is not None else ():
            if getattr(value, "__module__", "") == "transformers.masking_utils" and attribute.startswith("create_"):
                found.append((source, attribute))
    return found
