"""The forms in which example inputs may be given, everywhere the same: ``(args, kwargs)`` of one call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from resfx.errors import InputError

from .structure import Flattener, build

Positional = tuple[Any, ...] | list[Any] | torch.Tensor
Named = Mapping[str, Any]
Example = tuple[tuple[Any, ...], dict[str, Any]]


def example_of(args: Any = None, kwargs: Any = None) -> Example | None:
    """The call that ``args`` and ``kwargs`` mean; ``None`` where neither is given.

    Args:
        args: a tuple or list of arguments, or one tensor or array for one argument.
        kwargs: a dict or any other mapping of arguments by name, such as what a tokenizer returns.

    Raises:
        InputError: for anything else: a dict may be one argument or arguments by name.
    """
    if args is None and kwargs is None:
        return None
    return _plain(_positional(args)), _plain(_named(kwargs))


def _positional(args: Any) -> tuple[Any, ...]:
    if args is None:
        return ()
    if isinstance(args, (torch.Tensor, np.ndarray)):
        return (args,)
    if isinstance(args, list) or (isinstance(args, tuple) and not hasattr(args, "_fields")):
        return tuple(args)
    asked, kind = "args must be a tuple of the call's arguments", type(args).__name__
    if isinstance(args, Mapping) or hasattr(args, "keys"):
        raise InputError(asked, f"a {kind} with {_few(list(args.keys()))}",
                         "kwargs=inputs for arguments by name, args=(inputs,) if forward takes it whole")  # fmt: skip
    text = "tokenize it and pass kwargs=tokens" if isinstance(args, str) else "args=(value,) for one argument"
    raise InputError(asked, f"a {kind}", text)


def _named(kwargs: Any) -> dict[str, Any]:
    if kwargs is None:
        return {}
    asked, kind = "kwargs must be a dict of arguments by name", type(kwargs).__name__
    if not (isinstance(kwargs, Mapping) or hasattr(kwargs, "keys")):
        raise InputError(asked, f"a {kind}", "kwargs={'name': value}, or args=(value,) for arguments by position")
    named = {k: kwargs[k] for k in kwargs.keys()}  # noqa: SIM118 - a mapping may be no iterable of its keys
    if strange := [k for k in named if not isinstance(k, str)]:
        raise InputError(asked, f"the key {strange[0]!r}", "names of forward's arguments as keys")
    return named


def _plain(value: Any) -> Any:
    """The same inputs without tensors of inference mode, which no gradient can be taken through, and without the way on
    which others were computed, which is not part of the call."""
    flat = Flattener()
    template = flat.flatten(value)
    if not any(leaf.is_inference() or leaf.grad_fn is not None for leaf in flat.leaves):
        return value
    with outside_inference_mode():
        return build(template, [leaf.clone() if leaf.is_inference() else _leaf(leaf) for leaf in flat.leaves])


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.grad_fn is None else tensor.detach().requires_grad_()


@contextlib.contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Inside, no tensor is made that could never be trained; gradients are recorded only where they were before."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def _few(keys: list[Any]) -> str:
    return f"the keys {', '.join(map(str, keys[:4]))}{', ...' if len(keys) > 4 else ''}" if keys else "no keys"
