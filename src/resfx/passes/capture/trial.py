"""The model itself, run once on a call: what it raises is the user's to mend, not the tracer's fault."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from resfx._torch import is_fake
from resfx.errors import CaptureError, InputError, ResfxError
from resfx.passes.preserve import generators_kept, left_as_found, values_kept, watched_run

from .calls import Call, spelling, unbind
from .clone import clone_tree
from .diagnose import model_error
from .structure import COMPOUND, Flattener, Template, describe, named_parts


def try_call(tree: nn.Module, cls: type, signature: inspect.Signature, call: Call, grad: bool = False) -> None:
    """Run one call of ``cls.forward`` over ``tree``; nothing of it is kept.

    Arguments are copies. Parameters, buffers, attributes and random number generators are put back. Nothing is run
    where the model is on the meta device.

    Args:
        grad: record gradients: for a model that is known to run without.

    Raises:
        ModelError: if the model raises.
        InputError: if a tensor among the arguments has no rows.
        CaptureError: if the model writes into a list or dict among the arguments, which a graph cannot.
    """
    refuse_no_rows(cls, call)
    held = [*tree.parameters(), *tree.buffers()]
    if any(t.is_meta for t in held) or any(is_fake(t) for t in [*call.leaves, *held]):
        return

    def run() -> tuple[list[torch.Tensor], dict[str, Any]]:
        leaves = [leaf.detach().clone() for leaf in call.leaves]
        given = call.arguments(leaves)
        args, kwargs = unbind(signature, given)
        shell = clone_tree(tree)
        try:
            with torch.set_grad_enabled(grad):
                shell(*args, **kwargs)
        except ResfxError:  # of a rewritten module that the tree holds where none can be copied
            raise
        except Exception as error:
            names = [n for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]
            hint = "call it under torch.no_grad(), and rewrite with check=False" if grad else spelling(names, kwargs)
            raise model_error(cls, error, _inputs(call), hint) from error
        return leaves, given

    leaves, given = watched_run(tree, partial(left_as_it_was, tree), run)
    _refuse_written(cls, call, leaves, given)


def refuse_no_rows(cls: type, call: Call) -> None:
    """An example of no rows says nothing of the sizes that other calls have."""
    for name, part in named_parts(call.template):
        if part[0] == "tensor" and call.leaves[part[1]].dim() and call.leaves[part[1]].shape[0] == 0:
            raise InputError(
                f"cannot take {cls.__name__} by this example",
                f"{name} has no rows: {tuple(call.leaves[part[1]].shape)}", "an example of two rows or more",
            )  # fmt: skip


def _refuse_written(cls: type, call: Call, leaves: list[torch.Tensor], given: dict[str, Any]) -> None:
    """Lists and dicts among the arguments go into a graph by value; what is written into them would be lost."""
    flat = Flattener()
    after = dict(named_parts(flat.flatten(given)))
    for name, part in named_parts(call.template):
        if name not in after or not _unwritten(part, after[name], leaves, flat.leaves):
            raise CaptureError(
                f"cannot capture {cls.__name__}", f"forward writes into the list or dict given as {name!r}",
                "return what it writes, or pass an object with attributes, as a cache is",
            )  # fmt: skip


def _unwritten(before: Template, after: Template, old: list[torch.Tensor], new: list[Any]) -> bool:
    if before[0] == "object":  # written back after every call
        return True
    if before[0] == "tensor":
        return after[0] == "tensor" and old[before[1]] is new[after[1]]
    if before[0] not in COMPOUND:
        return before[0] == "int" or before == after
    if before[:-1] != after[:-1] or len(before[-1]) != len(after[-1]):
        return False
    return all(_unwritten(a, b, old, new) for a, b in zip(before[-1], after[-1], strict=True))


@contextlib.contextmanager
def left_as_it_was(tree: nn.Module) -> Iterator[None]:
    """Put back what a forward pass may do beside its results, but for what it writes into parameters."""
    with generators_kept(), values_kept(tree), left_as_found(tree):
        yield


def _inputs(call: Call) -> list[str]:
    return [f"{name}={_words(part, call)}" for name, part in named_parts(call.template)]


def _words(part: Template, call: Call) -> str:
    if part[0] != "tensor":
        return describe(part)[:80]
    leaf = call.leaves[part[1]]
    place = "" if leaf.device.type == "cpu" else f" on {leaf.device}"
    return f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}{place}"
