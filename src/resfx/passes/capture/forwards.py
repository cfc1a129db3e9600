"""Functions that were put in the place of a module's ``forward``: what they close over, and what a trace calls them."""

from __future__ import annotations

import functools
import types
from typing import Any


def rebound(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """A function for which modules and tensors of the tree are the copy's: one that was put in a forward's place
    closes over them. What else it closes over it shares, and whoever writes there is seen."""
    memo[id(function)] = function  # it may close over itself
    closed, given = function.__closure__ or (), function.__defaults__ or ()
    cells = tuple(_cell(cell, memo) for cell in closed)
    defaults = tuple(_bound_to(value, memo) for value in given)
    if any(new is not old for new, old in zip((*cells, *defaults), (*closed, *given), strict=True)):
        memo[id(function)] = _made(function, function.__code__, defaults or None, cells)
    return memo[id(function)]


def called_forward(run: Any) -> Any:
    """What was put in a forward's place, under its name: a trace leaves out frames that come before any ``forward``."""
    if isinstance(run, types.MethodType):
        return types.MethodType(called_forward(run.__func__), run.__self__)
    if isinstance(run, functools.partial):
        return functools.partial(called_forward(run.func), *run.args, **run.keywords)
    if not isinstance(run, types.FunctionType):
        return run
    return _made(run, run.__code__.replace(co_name="forward"), run.__defaults__, run.__closure__)


def _made(like: types.FunctionType, code: types.CodeType, defaults: Any, cells: Any) -> types.FunctionType:
    twin = types.FunctionType(code, like.__globals__, like.__name__, defaults, cells)
    twin.__kwdefaults__, twin.__doc__, twin.__qualname__ = like.__kwdefaults__, like.__doc__, like.__qualname__
    twin.__dict__.update(vars(like))  # what it wraps gives it its signature
    return twin


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
