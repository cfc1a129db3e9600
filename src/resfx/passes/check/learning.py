"""New parameters learn: each gets a gradient at the start or after a step, wherever the example lets one arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from resfx.errors import CheckError
from resfx.report.progress import warn

from .gradients import Gradients, backward, names
from .values import tensors_of

Values = dict[str, torch.Tensor]
Run = Callable[[Values], list[torch.Tensor]]  # a forward pass with some parameters given; its outputs


def check_learning(new: Any, run: Run, start: Values, first: Gradients | None) -> None:
    """Raise where a new parameter gets no gradient although one arrives at the module that owns it.

    Where none arrives the example is to blame (a branch that it does not take, a part that the model computes without
    gradients, weights that happen to cancel), not the rewrite: that is a warning with the parameters' names.

    Args:
        run: forward of ``new``.
        start: the new parameters at their start, by name; they are not written to.
        first: their gradients there, if known.

    Raises:
        CheckError: naming the parameters.
    """
    alive = _learning(new, run, start, {}, first)
    if len(alive) < len(start):
        # A branch or a head of the host that starts at zero hides what is behind it: look again with the host moved.
        torch.manual_seed(1)
        host = {n: p for n, p in new.named_parameters() if n not in start and p.is_floating_point()}
        moved = {n: p.detach() + 0.05 * torch.randn_like(p) for n, p in host.items()}
        alive |= _learning(new, run, start, moved, None)
    silent = sorted(set(start) - alive)
    if not silent:
        return
    broken = _reached(new, run, start, silent)
    if broken:
        raise CheckError(
            f"{len(broken)} of {len(start)} new parameters get no gradient, at the start or after a step",
            f"{names(broken)}; one arrives at the module that owns them",
            "exclude= those sites, or check=False; in a method of your own, see that its output depends on them",
        )
    warn(
        f"{len(silent)} of {len(start)} new parameters of {type(new).__name__} get no gradient on this example, for"
        f" none arrives where they stand: {names(silent)}. An example that reaches those places would tell more."
    )


def _learning(new: Any, run: Run, start: Values, host: Values, first: Gradients | None) -> set[str]:
    """The new parameters that get a gradient at the start or after a step, with the host's parameters as given."""
    values = {n: v.clone().requires_grad_() for n, v in start.items()}
    alive: set[str] = set()
    # Two rewrites may put one closed gate behind another: each opens with a step of its own.
    for _ in range(1 + len(new._resfx.applications)):
        grads = first or backward(run({**host, **values}), values)
        if grads is None:
            return alive
        first = None
        alive |= {n for n in values if (g := grads[n]) is not None and bool(g.ne(0).any())}
        if len(alive) == len(values):
            break
        # Each by its own size, as Adam would: behind many small layers a gradient may be 1e-20 of another.
        values = {
            n: (v.detach() - 0.1 * g / _size(g) if (g := grads[n]) is not None else v.detach()).requires_grad_()
            for n, v in values.items()
        }
    return alive


def _size(values: torch.Tensor) -> float:
    return float(values.abs().max()) or 1.0


def _reached(new: Any, run: Run, start: Values, silent: Sequence[str]) -> list[str]:
    """Those of some new parameters whose module is given rows and has an output that a gradient arrives at."""
    outputs: dict[str, list[torch.Tensor]] = {}
    idle: dict[str, bool] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            rows = any(t.numel() for t in tensors_of(given)[:1])
            idle[name] = idle.get(name, True) and not rows
            outputs.setdefault(name, []).extend(t for t in tensors_of(output) if t.requires_grad)

        return hook

    hooks: list[RemovableHandle] = []
    for name, module in new.get_submodule("resfx").named_modules(prefix="resfx"):
        if any(key.startswith(f"{name}.") for key in silent):
            hooks.append(module.register_forward_hook(record(name)))
    try:
        results = run({n: v.clone().requires_grad_() for n, v in start.items()})
    finally:
        for hook in hooks:
            hook.remove()
    numbered = {f"{name}#{i}": t for name, made in outputs.items() for i, t in enumerate(made)}
    grads = backward(results, numbered) or {}
    arrived = tuple({f"{k.partition('#')[0]}." for k, g in grads.items() if g is not None and bool(g.ne(0).any())})
    unused = tuple(f"{name}." for name, nothing in idle.items() if nothing)
    return [n for n in silent if n.startswith(arrived) and not n.startswith(unused)]
