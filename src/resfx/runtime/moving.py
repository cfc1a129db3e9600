"""A rewritten model that changes its type or device, while models that it shares parameters with keep theirs."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from resfx._torch import held_parameters

Kind = tuple[torch.dtype, torch.device]


def changing(module: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor]) -> set[Kind]:
    """The types and devices of its parameters that ``fn`` changes."""
    kinds = {(p.dtype, p.device) for p in module.parameters()} or {(torch.float32, torch.device("cpu"))}
    return {kind for kind in kinds if _kind(fn(torch.empty(0, dtype=kind[0], device=kind[1]))) != kind}


def part_from(module: nn.Module, others: Iterable[nn.Module], kinds: set[Kind]) -> None:
    """Give a module parameters of its own in the place of those of these kinds that others hold, too.

    All others stay the objects they are: a move swaps what is in them, and optimizers go on. Hooks on a parameter stay
    with the others'.
    """
    shared = {id(p) for other in others for p in other.parameters()}
    twins: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for part in module.modules():
        for name, old in held_parameters(part).items():
            if old is None or id(old) not in shared or _kind(old) not in kinds:
                continue
            if id(old) not in twins:
                twins[id(old)] = old, _twin(old)
            held_parameters(part)[name] = twins[id(old)][1]
    if twins:
        _watch_optimizers(list(twins.values()))


def _twin(old: nn.Parameter) -> nn.Parameter:
    new = nn.Parameter(old.data, old.requires_grad)
    new.__dict__.update(old.__dict__)
    if old.grad is not None:
        new.grad = old.grad.detach()  # an object of its own: a move swaps what is in it
    return new


def _kind(tensor: torch.Tensor) -> Kind:
    return tensor.dtype, tensor.device


def _watch_optimizers(pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Warn at the step of an optimizer that was made before the move: it holds parameters that nothing trains now.

    Nothing knows a parameter's optimizers, but a step does: gradients come to the new parameter, and it has the old.
    """
    known = {id(old): (weakref.ref(old), weakref.ref(new)) for old, new in pairs}

    def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
        held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
        for key in held.keys() & known.keys():
            old, new = (ref() for ref in known[key])
            if old is None or new is None:
                del known[key]
            elif old is held[key] and old.grad is None and new.grad is not None and id(new) not in held:
                known.clear()
                warnings.warn(
                    "this optimizer holds parameters of the original model, which the rewritten one shares no longer"
                    " since it was moved (.to, .cuda, .bfloat16): they do not train. Make the optimizer after the move,"
                    " or delete the original before",
                    RuntimeWarning, stacklevel=4,
                )  # fmt: skip
                break
        if not known:
            handle.remove()

    handle = register_optimizer_step_pre_hook(before_step)
    weakref.finalize(pairs[0][1], handle.remove)
