"""The promises of a rewrite, held against the original on real inputs before the user gets the result."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from resfx.errors import CheckError
from resfx.passes.capture.structure import Flattener
from resfx.passes.preserve import preserved
from resfx.passes.scopes.application import Application
from resfx.passes.scopes.bank import BANK


class GraphDiffers(Exception):
    """The captured graph computes otherwise than the eager code, before any rewrite."""


def check_rewrite(
    new: Any,
    before: nn.Module,
    example: tuple[tuple[Any, ...], dict[str, Any]],
    applications: Sequence[Application],
    exact: bool = False,
) -> None:
    """Same output at a preserving start, and a gradient for every new parameter now or after one step.

    Runs the original once and the rewritten model up to three times, forward and backward; no state is kept:
    random number generators and buffers are put back, no ``.grad`` is written.

    Args:
        exact: raise where the graph itself differs from the eager code, so that it can be captured otherwise.

    Raises:
        GraphDiffers: if ``exact``.
        CheckError: naming the first site that breaks, or the parameters without gradient.
    """
    if any(t.is_meta for t in new.parameters()):
        return
    args, kwargs = example
    with preserved(new, before), _training_kernels():
        torch.manual_seed(0)
        if all(a.method.start == "preserve" for a in applications):
            _check_output(new, before, args, kwargs, applications, exact)
        _check_gradients(new, args, kwargs)


@contextlib.contextmanager
def _training_kernels() -> Iterator[None]:
    """torch.nn.TransformerEncoder runs another kernel without gradients, which rounds otherwise than its training."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors of any output, in order."""
    flat = Flattener()
    flat.flatten(value)
    return [t for t in flat.leaves if isinstance(t, torch.Tensor)]


def _fresh(value: Any) -> Any:
    """A deep copy of stateful arguments, so that one run does not see another's cache."""
    import copy

    return copy.deepcopy(value)


def _check_output(
    new: Any, before: nn.Module, args: Any, kwargs: Any, applications: Sequence[Application], exact: bool
) -> None:
    state = torch.random.get_rng_state()
    with torch.no_grad():
        want = tensors_of(before(*_fresh(args), **_fresh(kwargs)))
        torch.random.set_rng_state(state)
        got = tensors_of(new(*_fresh(args), **_fresh(kwargs)))
    if len(want) == len(got) and all(same(a, b) for a, b in zip(want, got, strict=True)):
        return
    worst = max((difference(a, b) for a, b in zip(want, got, strict=False)), default=float("inf"))
    site = first_broken_site(new, args, kwargs, applications)
    if site is None and exact:
        raise GraphDiffers
    if site is None and len(want) == len(got) and all(_rounding(a, b) for a, b in zip(want, got, strict=True)):
        warnings.warn(
            f"the captured graph of {type(before).__name__} rounds differently from its eager code, by up to"
            f" {worst:.2g} before any rewrite: every rewritten add is exact, the start as a whole equal to rounding",
            stacklevel=5,
        )
        return
    raise CheckError(
        f"the rewritten {type(new).__name__} does not start where the original stands",
        f"outputs differ by up to {worst:.3g}" + (f"; first at {site}" if site else "; not at a rewritten site"),
        "exclude= that site, or report it; check=False returns the module all the same",
    )


# What new modules compute as long as they leave the host alone, by the scope of their method and their role.
_PLAIN: dict[tuple[str, str], Callable[[Sequence[Any], dict[str, Any]], torch.Tensor]] = {
    ("site", "add"): lambda given, named: total if (total := named.get("total")) is not None else given[0] + given[1],
    ("depth", "read"): lambda given, named: given[1],
    ("depth", "exit"): lambda given, named: given[1],
    ("wide", "read"): lambda given, named: given[0][..., 0, :],
    ("wide", "write"): lambda given, named: given[0] + given[1].unsqueeze(-2),
}


def first_broken_site(new: Any, args: Any, kwargs: Any, applications: Sequence[Application]) -> str | None:
    """The first new module that changes the stream: an add that is not the plain sum, a read that is not the state."""
    broken: list[str] = []

    def look(name: str, plain: Callable[..., torch.Tensor]) -> Any:
        def hook(module: nn.Module, given: Any, named: Any, output: Any) -> None:
            results = output if isinstance(output, tuple) else (output,)
            if not broken and not all(same(plain(given, named), r) for r in results if isinstance(r, torch.Tensor)):
                broken.append(name)

        return hook

    hooks = []
    for application in applications:
        for placed in application.placed.values():
            if plain := _PLAIN.get((application.method.scope, placed.role)):
                module, name = new.get_submodule(placed.path), placed.path.removeprefix(f"{BANK}.")
                hooks.append(module.register_forward_hook(look(name, plain), with_kwargs=True))
    _run_watched(new, args, kwargs, hooks)
    return broken[0] if broken else None


def _run_watched(new: Any, args: Any, kwargs: Any, hooks: Sequence[RemovableHandle]) -> None:
    """One forward pass under hooks, which are removed."""
    try:
        with torch.no_grad():
            new(*_fresh(args), **_fresh(kwargs))
    finally:
        for hook in hooks:
            hook.remove()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit in value, NaN where NaN is."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _rounding(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.is_floating_point() or a.shape != b.shape:
        return same(a, b)
    return difference(a, b) <= 64 * torch.finfo(a.dtype).eps * max(1.0, float(a.abs().max()) if a.numel() else 1.0)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference; infinite for other shapes."""
    if a.shape != b.shape or not a.numel():
        return float("inf") if a.shape != b.shape else 0.0
    return float((a.double() - b.double()).abs().max())


def _check_gradients(new: Any, args: Any, kwargs: Any) -> None:
    start = {n: p.detach().clone() for n, p in new.new_parameters().items() if p.requires_grad}
    alive = _learning(new, start, {}, args, kwargs)
    if len(alive) < len(start):
        # A branch or a head of the host that starts at zero hides what is behind it: look again with the host moved.
        torch.manual_seed(1)
        host = {n: p for n, p in new.named_parameters() if n not in start and p.is_floating_point()}
        moved = {n: p.detach() + 0.05 * torch.randn_like(p) for n, p in host.items()}
        alive |= _learning(new, start, moved, args, kwargs)
    dead = sorted(set(start) - alive)
    if dead:
        unused = _unused(new, args, kwargs)
        dead = [n for n in dead if not n.startswith(unused)]
    if not dead:
        return
    raise CheckError(
        f"{len(dead)} of {len(start)} new parameters get no gradient, at the start or after a step",
        ", ".join(dead[:4]), "exclude= those sites (their output may not reach the loss), or check=False",
    )  # fmt: skip


def _unused(new: Any, args: Any, kwargs: Any) -> tuple[str, ...]:
    """The new modules that got no rows on the example: those of tokens it has none of."""
    empty: dict[str, bool] = {}
    hooks = [
        m.register_forward_hook(
            lambda _, inputs, out, n=n: empty.__setitem__(n, empty.get(n, True) and not tensors_of(inputs)[0].numel())
        )
        for n, m in new.get_submodule("resfx").named_modules()
        if next(m.parameters(recurse=False), None) is not None
    ]
    _run_watched(new, args, kwargs, hooks)
    return tuple(f"resfx.{n}." for n, nothing in empty.items() if nothing)


def _learning(
    new: Any, start: dict[str, torch.Tensor], host: dict[str, torch.Tensor], args: Any, kwargs: Any
) -> set[str]:
    """The new parameters that get a gradient at the start or after a step, with the host's parameters as given."""
    values = {n: v.clone().requires_grad_() for n, v in start.items()}
    alive: set[str] = set()
    # Two rewrites may put one closed gate behind another: each opens with a step of its own.
    for _ in range(1 + len(new._resfx.applications)):
        grads = _gradients(new, values, host, args, kwargs)
        if grads is None:
            return set(start)
        alive |= {n for n, g in grads.items() if g is not None and bool(g.ne(0).any())}
        if len(alive) == len(values):
            break
        # Each by its own size, as Adam would: behind many small layers a gradient may be 1e-20 of another.
        values = {
            n: (v.detach() - 0.1 * g / _largest(g) if (g := grads[n]) is not None else v.detach()).requires_grad_()
            for n, v in values.items()
        }
    return alive


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max()) or 1.0


def _gradients(
    new: Any, values: dict[str, torch.Tensor], host: dict[str, torch.Tensor], args: Any, kwargs: Any
) -> dict[str, Any] | None:
    torch.manual_seed(0)
    with torch.enable_grad():
        output = torch.func.functional_call(new, {**host, **values}, _fresh(args), _fresh(kwargs))
        floats = [t for t in tensors_of(output) if t.is_floating_point() and t.requires_grad]
        if not floats or not values:
            return None
        # A plain sum is blind behind a norm; any fixed uneven weighting is not.
        terms = [(t.float() * torch.cos(torch.arange(t.numel(), device=t.device)).view(t.shape)).sum() for t in floats]
        loss = torch.stack([t.cpu() for t in terms]).sum()
        grads = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    return dict(zip(values, grads, strict=True))
