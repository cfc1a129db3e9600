"""Wrappers that were put around rewritten modules since: captures look through them, calls go through them.

What recomputes, shards, compiles or measures a block may stand in its place and hold it. The rewrite knows the block by
the place that it had; a call of the wrapper there reaches it with whatever is passed.
"""

from __future__ import annotations

import copy

from torch import nn

from resfx._torch import held_modules, hold_modules

from .units import Unit


def unit_at(module: nn.Module, place: str) -> nn.Module:
    """What the rewrite knows by a place: the module that stands there, or the rewritten one that it is wrapped around.

    Args:
        module: what stands there now.
        place: in the whole model.
    """
    known = (m for m in module.modules() if isinstance(unit := vars(m).get("_resfx_unit"), Unit) and unit.path == place)
    return next(known, module)


def find_below(module: nn.Module, place: str, path: str) -> nn.Module:
    """A submodule by the path that it had in a module before wrappers came.

    Args:
        place: of the module in the whole model.
    """
    for name in path.split(".") if path else ():
        place = f"{place}.{name}" if place else name
        module = unit_at(module.get_submodule(name), place)
    return module


def unwrapped(module: nn.Module, place: str) -> nn.Module:
    """A tree as the rewrite knew it; what holds no wrapper is the same object as in the tree given.

    Args:
        place: of the module in the whole model.
    """
    children = dict(held_modules(module))
    for name, child in children.items():
        if child is not None and (place or name != "resfx"):
            at = f"{place}.{name}" if place else name
            children[name] = unwrapped(unit_at(child, at), at)
    if all(child is held_modules(module)[name] for name, child in children.items()):
        return module
    view = copy.copy(module)
    hold_modules(view, children)
    return view
