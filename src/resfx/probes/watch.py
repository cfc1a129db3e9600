"""Looking on while a rewritten model runs: what its new modules tell, and what its blocks hand on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resfx.methods.depth.base import DepthMethod
from resfx.methods.observe import Observations, Observed
from resfx.passes.scopes.application import Application
from resfx.passes.scopes.bank import Placed
from resfx.runtime.module import rewriting_of


@dataclass(frozen=True, eq=False)
class Seen:
    """What one new module told in one call."""

    placed: Placed
    method: Any
    observations: Observations

    def columns(self, observed: Observed) -> tuple[int, ...]:
        """The numbers of the entries of an observation's last axis."""
        if not observed.axes:
            return ()
        size = observed.values.shape[-1]
        if observed.axes[-1] == "source" and isinstance(self.method, DepthMethod):
            facts = self.placed.facts
            groups = self.method.sources(facts["read"], facts["last"])
            if groups is not None and len(groups) == size:
                return tuple(group[0] for group in groups)  # a block that grows from read to read keeps its place
        return tuple(range(observed.first, observed.first + size))


@contextlib.contextmanager
def watching_methods(new: nn.Module) -> Iterator[list[Seen]]:
    """Inside, calls of the new modules add to the list, in the order in which they come."""
    seen: list[Seen] = []
    hooks = []

    def hook_of(application: Application, placed: Placed) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if kwargs.get("recomputed"):  # a read that keeps nothing calls itself
                return
            with torch.no_grad():
                told = module.observe(*args, **kwargs)
            kept = {n: Observed(o.values.detach().clone(), o.axes, o.first) for n, o in told.items()}
            seen.append(Seen(placed, application.method, kept))

        return hook

    for application in rewriting_of(new).applications:
        for placed in application.placed.values():
            module = new.get_submodule(placed.path)
            if hasattr(module, "observe"):
                hooks.append(module.register_forward_pre_hook(hook_of(application, placed), with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def watching_blocks(model: nn.Module, blocks: Sequence[str]) -> Iterator[list[tuple[str, Tensor]]]:
    """Inside, what each repeated block hands on is added to the list, by the block's name: the state of the stream,
    ``(..., d)``, or ``(..., n, d)`` where it is wide. A captured graph has no blocks to look at."""
    states: list[tuple[str, Tensor]] = []
    hooks = []

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            state = next((x for x in _leaves(output) if x.is_floating_point()), None)
            if state is not None:
                states.append((name, state))

        return hook

    modules = dict(model.named_modules())
    hooks += [modules[name].register_forward_hook(hook_of(name)) for name in blocks if name in modules]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """What runs inside leaves random numbers and buffers as they were, and runs no compiled code: that has no hooks."""
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"), torch.inference_mode(False):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
