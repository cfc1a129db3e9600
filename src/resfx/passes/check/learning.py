"""New parameters learn: each gets a gradient at the start or after a step, or at least could get one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from resfx._torch import pytree
from resfx.errors import CheckError
from resfx.report.progress import warn

from .gradients import Gradients, backward, names
from .values import tensors_of

Values = dict[str, torch.Tensor]
Run = Callable[[Values], list[torch.Tensor]]  # a forward pass with some parameters given; its outputs


def check_learning(new: Any, run: Run, start: Values, first: Gradients | None) -> None:
    """Raise where a new parameter gets no gradient and could not get one, whatever its module is given.

    Where it could, the example is to blame or the model (a branch that is not taken, a part computed without
    gradients, a stream that is zero there), not the rewrite: that is a warning with the parameters' names.

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
    broken = _unable(new, run, start, silent)
    if broken:
        raise CheckError(
            f"{len(broken)} of {len(start)} new parameters get no gradient, at the start or after a step",
            f"{names(broken)}; nor from noise in place of the module's inputs",
            "exclude= those sites, or check=False; in a method of your own, see that its output depends on them",
        )
    warn(
        f"{len(silent)} of {len(start)} new parameters of {type(new).__name__} get no gradient on this example,"
        f" though they can learn: {names(silent)}. What the model does there may be nothing, or not reach its output."
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


def _unable(new: Any, run: Run, start: Values, silent: Sequence[str]) -> list[str]:
    """Those of some new parameters that get no gradient from any input: their module is called once more on noise."""
    calls: dict[str, tuple[Any, Any]] = {}
    idle: set[str] = set()

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            rows = all(t.numel() for t in tensors_of((args, kwargs)))
            (calls.setdefault(name, (args, kwargs)) if rows else idle.add(name))

        return hook

    hooks: list[RemovableHandle] = []
    for name, module in new.get_submodule("resfx").named_modules(prefix="resfx"):
        if any(key.startswith(f"{name}.") for key in silent):
            hooks.append(module.register_forward_pre_hook(record(name), with_kwargs=True))
    try:
        run({n: v.clone().requires_grad_() for n, v in start.items()})
    finally:
        for hook in hooks:
            hook.remove()
    able = {key for name, call in calls.items() for key in _taught(new.get_submodule(name), name, call)}
    unused = tuple(f"{name}." for name in idle - set(calls))
    return [n for n in silent if n not in able and not n.startswith(unused)]


def _taught(module: nn.Module, name: str, call: tuple[Any, Any]) -> set[str]:
    """The parameters of a module that get a gradient from noise in the form of a call, each moved off its value."""
    noise = lambda t: torch.randn_like(t) if t.is_floating_point() else t
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: noise(t.detach()), call)
    values = {n: (p.detach() + 0.3 * torch.randn_like(p)).requires_grad_() for n, p in module.named_parameters()}
    with torch.enable_grad():
        outputs = tensors_of(torch.func.functional_call(module, values, args, kwargs))
    grads = backward(outputs, values) or {}
    return {f"{name}.{n}" for n, g in grads.items() if g is not None and bool(g.ne(0).any())}
