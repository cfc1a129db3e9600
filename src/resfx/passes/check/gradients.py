"""Gradients of the rewritten model: those of the original's parameters are the original's, and new ones learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from resfx.errors import CheckError
from resfx.report.progress import warn

from .values import difference, largest

BUDGET = 2**28  # entries of the original's gradients that are held at a time, twice
ROUNDING = 32  # units of a type's precision, of the largest gradient in a module, that other kernels may differ by
Gradients = dict[str, torch.Tensor | None]


def compared(model: nn.Module) -> dict[str, nn.Parameter]:
    """The original's parameters whose gradients are compared: all, or as many of the smaller ones as fit a budget.

    Every layer has small ones (norms, biases), and whatever is lost on the way back is missing in all before it.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    chosen: set[str] = set()
    room = BUDGET
    for name, parameter in sorted(named, key=lambda pair: pair[1].numel()):
        room -= parameter.numel()
        if room < 0 and chosen:
            break
        chosen.add(name)
    return {n: p for n, p in named if n in chosen}


def backward(outputs: Sequence[torch.Tensor], parameters: dict[str, Any]) -> Gradients | None:
    """Gradients of a fixed mixture of the outputs; ``None`` where no output depends on any parameter."""
    floats = [t for t in outputs if t.is_floating_point() and t.requires_grad]
    if not floats or not parameters:
        return None
    # A plain sum is blind behind a norm; any fixed uneven weighting is not.
    with torch.enable_grad():  # a rewrite under no_grad or inference_mode is checked all the same
        terms = [(t.float() * torch.cos(torch.arange(t.numel(), device=t.device)).view(t.shape)).sum() for t in floats]
        loss = torch.stack([t.cpu() for t in terms]).sum()
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: g.to_dense() if g is not None and g.is_sparse else g for n, g in zip(parameters, grads, strict=True)}


def check_original(name: str, want: Gradients, got: Gradients, lost: str) -> None:
    """Hold the gradients of the original's parameters against those of the original.

    Entries may differ by :data:`ROUNDING` units of precision (4e-6 in float32) of the largest entry in the module
    that owns the parameter: a graph may run another kernel than eager code does. A larger difference that is still
    rounding (a thousandth) is a warning, and so are gradients that are not finite in the original.

    Raises:
        CheckError: naming the parameters, and ``lost``: what the original does that a graph may lose.
    """
    if endless := [n for n, g in want.items() if not finite(g)]:
        warn(
            f"gradients of {len(endless)} of {len(want)} parameters of {name} are not finite on this example, in the"
            f" original already: they were not compared ({names(endless)})"
        )
        return
    scale: dict[str, float] = {}
    for key, grad in want.items():
        owner = key.rpartition(".")[0]
        scale[owner] = max(scale.get(owner, 0.0), largest(grad) if grad is not None else 0.0)
    off: dict[str, float] = {}
    wrong: list[str] = []
    for key, a in want.items():
        apart = _apart(a, got[key])
        if not apart:
            continue
        eps = torch.finfo((a if a is not None else got[key]).dtype).eps  # type: ignore[union-attr]
        whole = max(scale[key.rpartition(".")[0]], eps * max(scale.values()))  # where all is zero, noise is not
        off[key] = apart / whole if whole else float("inf")
        if off[key] > max(1e-3, ROUNDING * eps):
            wrong.append(key)
        elif off[key] <= ROUNDING * eps:
            del off[key]
    if wrong:
        cause = f"; {lost} is lost by the capture" if lost else ""
        raise CheckError(
            f"the rewritten {name} does not train as the original does",
            f"gradients of {len(wrong)} of {len(want)} original parameters differ, by up to"
            f" {max(off.values()):.2g} of the largest: {names(wrong)}{cause}",
            "take what is lost out of the model's forward, or check=False to train with these gradients",
        )
    if off:
        warn(
            f"gradients of {len(off)} of {len(want)} original parameters of {name} round differently in the graph,"
            f" by up to {max(off.values()):.2g} of the largest: {names(list(off))}"
        )


def _apart(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    """Largest difference of two gradients; none is a gradient of zero."""
    if a is None and b is None:
        return 0.0
    if a is None or b is None:
        only = a if a is not None else b
        assert only is not None
        return difference(only, torch.zeros_like(only))
    return difference(a, b)


def finite(grad: torch.Tensor | None) -> bool:
    """Whether a gradient has neither NaN nor infinities."""
    return grad is None or bool(grad.isfinite().all())


def names(keys: Sequence[str], most: int = 4) -> str:
    """The first few of many names."""
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
