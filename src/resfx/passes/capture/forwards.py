"""Functions that were put in the place of a module's ``forward``: what they close over, and what a trace calls them."""

from __future__ import annotations

import functools
import types
from typing import Any


def rebound(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """A function for which modules and tensors of the tree are the copy's: one that was put in a forward's place
    closes over them. What else it closes over it shares, and whoever writes there is seen."""
    cells = tuple(_cell(cell, memo) for cell in function.__closure__ or ())
    defaults = tuple(_bound_to(v, memo) for v in function.__defaults__ or ())
    if all(a is b for a, b in zip((*cells, *defaults), (*(function.__closure__ or ()), *(function.__defaults__ or ())), strict=True)):  # fmt: skip
        return function
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults or None, cells)
    twin.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(twin, function) if "__wrapped__" in vars(function) else twin


def called_forward(run: Any) -> Any:
    """What was put in a forward's place, under its name: a trace leaves out frames that come before any ``forward``."""
    if isinstance(run, types.MethodType):
        return types.MethodType(called_forward(run.__func__), run.__self__)
    if isinstance(run, functools.partial):
        return functools.partial(called_forward(run.func), *run.args, **run.keywords)
    if not isinstance(run, types.FunctionType):
        return run
    code = run.__code__.replace(co_name="forward")
    twin = types.FunctionType(code, run.__globals__, "forward", run.__defaults__, run.__closure__)
    twin.__kwdefaults__ = run.__kwdefaults__
    return functools.update_wrapper(twin, run) if "__wrapped__" in vars(run) else twin


def _cell(cell: types.CellType, memo: dict[int, Any]) -> types.CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # not yet set
        return cell
    own = _bound_to(held, memo)
    return cell if own is held else types.CellType(own)


def _bound_to(value: Any, memo: dict[int, Any]) -> Any:
    """The copy's own of a module, a tensor, or a function over them; any other value as it is."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, types.MethodType) and id(value.__self__) in memo:
        return types.MethodType(value.__func__, memo[id(value.__self__)])
    return rebound(value, memo) if isinstance(value, types.FunctionType) else value
