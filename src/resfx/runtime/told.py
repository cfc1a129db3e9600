"""How a module is told which generated code to run: by a keyword, or beside the call.

A ``forward`` that was put in the place of a rewritten one since, on the instance, in a class derived from its own or in
a wrapper around it, may take the arguments of the original and no more.
"""

from __future__ import annotations

import functools
import types
from threading import get_ident
from typing import Any

from torch import nn

from resfx._torch import is_compiling

KEYWORD = "resfx"


def told_by_keyword(module: Any) -> bool | None:
    """Whether what stands in a place lets the keyword through to the rewritten module there; ``None`` where none is."""
    if not isinstance(module, nn.Module):
        return None
    held, cls = module.__dict__, type(module)
    if "_resfx_unit" in held and "forward" not in held and cls.forward is getattr(cls, "_resfx_forward", None):
        return True  # nearly always
    for inner in module.modules():
        if not _takes_keyword(inner):
            return None if unit_in(module) is None else False
        if "_resfx_unit" in vars(inner):
            return True
    return None


def _takes_keyword(module: nn.Module) -> bool:
    return takes_keyword(vars(module).get("forward", type(module).forward))


def takes_keyword(run: Any) -> bool:
    """Whether a ``forward`` takes the keyword, be it among others that it does not know."""
    while isinstance(run, (types.MethodType, functools.partial)):
        run = run.__func__ if isinstance(run, types.MethodType) else run.func
    run = run if isinstance(run, types.FunctionType) else vars(type(run)).get("__call__")
    code: Any = getattr(run, "__code__", None)  # its own: a signature is that of what it wraps
    return code is not None and bool(code.co_flags & 0x08 or KEYWORD in code.co_varnames)  # 0x08: has ``**kwargs``


def unit_in(module: nn.Module) -> Any:
    """What the rewritten module runs that stands in a place, or that is wrapped there; ``None`` where none is."""
    return next((vars(m)["_resfx_unit"] for m in module.modules() if "_resfx_unit" in vars(m)), None)


def told_beside(unit: Any) -> Any:
    """What the call that is going on around a rewritten module tells it beside, if anything."""
    return unit.beside.get(_thread())


def _thread() -> int:
    return 0 if is_compiling() else get_ident()  # which no compiler traces


def call_beside(module: nn.Module, handed: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Call a module, and have the rewritten one in its place told beside the call."""
    beside: dict[int, Any] = unit_in(module).beside
    thread = _thread()
    around = beside.get(thread)
    beside[thread] = handed
    try:
        return module(*args, **kwargs)
    finally:
        if around is None:
            del beside[thread]
        else:
            beside[thread] = around
