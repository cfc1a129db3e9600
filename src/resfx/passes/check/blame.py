"""Which new module is the first to change the stream."""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from resfx.passes.scopes.application import Application
from resfx.passes.scopes.bank import BANK

from .values import same

# What new modules compute as long as they leave the host alone, by the scope of their method and their role; ``""`` for
# any role.
_PLAIN: dict[tuple[str, str], Callable[[Sequence[Any], dict[str, Any]], torch.Tensor]] = {
    ("site", "add"): lambda given, named: total if (total := named.get("total")) is not None else given[0] + given[1],
    ("depth", "read"): lambda given, named: given[1],
    ("depth", "exit"): lambda given, named: given[1],
    ("route", ""): lambda given, named: given[1],
    ("wide", "read"): lambda given, named: given[0][..., 0, :],
    ("wide", "write"): lambda given, named: given[0] + given[1].unsqueeze(-2),
}


def first_broken_site(new: Any, args: Any, kwargs: Any, applications: Sequence[Application]) -> str | None:
    """The first new module that changes the stream: an add that is not the plain sum, a read that is not the state."""
    broken: list[str] = []

    def look(name: str, plain: Callable[..., torch.Tensor], several: bool) -> Any:
        def hook(module: nn.Module, given: Any, named: Any, output: Any) -> None:
            # What gives several things may give others beside tensors of the stream.
            many = several and isinstance(output, tuple)
            results = [r for r in output if isinstance(r, torch.Tensor)] if many else [output]
            if not broken and not all(isinstance(r, torch.Tensor) and same(plain(given, named), r) for r in results):
                broken.append(name)

        return hook

    hooks: list[RemovableHandle] = []
    for application in applications:
        for placed in application.placed.values():
            scope = application.method.scope
            if plain := _PLAIN.get((scope, placed.role), _PLAIN.get((scope, ""))):
                module, name = new.get_submodule(placed.path), placed.path.removeprefix(f"{BANK}.")
                hooks.append(module.register_forward_hook(look(name, plain, scope != "site"), with_kwargs=True))
    try:
        with torch.no_grad(), contextlib.suppress(Exception):  # what is handed a broken state may raise
            new(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    finally:
        for hook in hooks:
            hook.remove()
    return broken[0] if broken else None


def raised_in(new: nn.Module, error: BaseException) -> str:
    """The new module in whose code an error was raised; ``""`` for none."""
    names = {id(m): n for n, m in new.get_submodule(BANK).named_modules() if n}
    frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((names[id(m)] for m in reversed(frames) if id(m) in names), "")
