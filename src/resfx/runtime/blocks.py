"""The repeated blocks of a rewritten model, compiled or recomputed one by one: they are the user's own modules."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from resfx._torch import call_with_hooks, set_compiled_call
from resfx.errors import OptionError, meant
from resfx.methods.options import refuse_wrong_arguments, refuse_wrong_options

from .module import rewriting_of


def block_names(module: nn.Module) -> list[str]:
    """Names of the repeated blocks that a rewritten model's streams consist of; of nested ones the outermost.

    Raises:
        ResfxError: if the module is not a rewritten one.
    """
    report = rewriting_of(module).first
    assert report is not None
    return outermost(s.block for s in report.sites)


def outermost(names: Iterable[str]) -> list[str]:
    """Of the names that end with a number, those that are in no other; each once."""
    numbered = dict.fromkeys(n for n in names if n.rpartition(".")[2].isdigit())
    return [n for n in numbered if not any(n.startswith(f"{other}.") for other in numbered)]


def compile_blocks(module: Any, **options: Any) -> Any:
    """Compile a rewritten model block by block: equal blocks share one compiled function.

    Compile time then depends on the number of *different* blocks, not on the depth. What stands outside the blocks
    (embeddings, masks, head, loss) runs as it is. Calling ``torch.compile`` on the whole model instead compiles one
    graph of everything.

    Args:
        module: what :func:`resfx.rewrite` returned; changed in place, like ``nn.Module.compile``.
        options: of ``torch.compile``: ``backend``, ``mode``, ``dynamic``, ``fullgraph``, ...

    Returns:
        ``module``.

    Raises:
        ResfxError: if the module is not a rewritten one.
        OptionError: for an option or a backend that ``torch.compile`` does not know.
    """
    refuse_wrong_options("compile_blocks", torch.compile, options)
    backend = options.get("backend")
    if isinstance(backend, str) and backend not in torch.compiler.list_backends(exclude_tags=()):
        usual = torch.compiler.list_backends()  # without those for debugging
        raise OptionError(f"compile_blocks: there is no backend {backend!r}", f"there are {', '.join(usual)}",
                          f"backend={meant(backend, usual) or 'inductor'!r}, or a function")  # fmt: skip
    groups: dict[Any, Any] = {}
    for name in block_names(module):
        block = module.get_submodule(name)
        parts = tuple(
            (n, type(m), *(code.function for code in unit.codes))
            for n, m in block.named_modules()
            if (unit := m.__dict__.get("_resfx_unit")) is not None
        )
        key = (type(block), parts)
        if key not in groups:
            groups[key] = torch.compile(_own_call(len(groups)), **options)
        set_compiled_call(block, functools.partial(groups[key], block))
    return module


def checkpoint_blocks(module: Any, every: int = 1, **options: Any) -> Any:
    """Keep only the inputs of a rewritten model's blocks for the backward pass and compute the rest again there.

    Acts in training mode while gradients are recorded. Hugging Face models have ``gradient_checkpointing_enable()`` of
    their own, which does the same to a rewritten model.

    Args:
        module: what :func:`resfx.rewrite` returned; changed in place.
        every: recompute every ``every``-th block only; 0 for none.
        options: of ``torch.utils.checkpoint.checkpoint``; ``use_reentrant`` is false unless given. Random numbers
            (dropout) are the same again in the backward pass unless ``preserve_rng_state=False``.

    Returns:
        ``module``.

    Raises:
        ResfxError: if the module is not a rewritten one.
        OptionError: if ``every`` is negative, or no whole number; for an option that ``checkpoint`` does not know.
    """
    refuse_wrong_arguments(checkpoint_blocks, every=every)
    refuse_wrong_options("checkpoint_blocks", checkpoint, options, more=["preserve_rng_state"])
    if every < 0:
        raise OptionError("checkpoint_blocks: every must be at least 0", f"{every}", "every=1, or 0 for none")
    names = block_names(module)
    chosen = set(names[::every]) if every else set()
    for name in names:
        block = module.get_submodule(name)
        if isinstance(block.__dict__.get("forward"), Recomputed):
            before = block.__dict__.pop("forward").run
            if getattr(before, "__func__", None) is not type(block).forward:
                block.forward = before
        if name in chosen:
            block.forward = Recomputed(block, block.forward, {"use_reentrant": False, **options})
    return module


class Recomputed:
    """A block's ``forward`` whose activations are computed again in the backward pass."""

    def __init__(self, block: nn.Module, run: Any, options: dict[str, Any]) -> None:
        self.block, self.run, self.options = block, run, options
        self._resfx_before = run  # what a trace takes instead

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.block.training and torch.is_grad_enabled()):
            return self.run(*args, **kwargs)
        return checkpoint(self.run, *args, **self.options, **kwargs)


def _own_call(number: int) -> Any:
    """A call of a block as a function of its own: compiled code is kept per code object, up to a limit."""

    def call(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return call_with_hooks(block, *args, **kwargs)

    return FunctionType(call.__code__.replace(co_name=f"block_{number}"), call.__globals__)
