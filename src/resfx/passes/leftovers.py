"""Tensors of a trace that the model's code left outside of the model: in a table of its file, on a class, in a cache.

The tree that is traced is a copy, which takes what is written into it along. A dict of the file, an attribute of a
class and a function that remembers its results belong to everybody: later calls would find tensors without values.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from resfx._torch import is_traced

_TABLES, _CACHE = (dict, list, set), type(functools.cache(lambda: None))
_MISSING = object()


@contextlib.contextmanager
def nothing_left(model: nn.Module) -> Iterator[None]:
    """Inside, a model may be traced; tensors of the trace do not stay where its classes' files and classes have names.

    What held something else before holds that again; entries of dicts, lists and sets go; a ``functools.lru_cache``
    that took anything in meanwhile is emptied.
    """
    places = list(_places(model))
    before = [dict(vars(place)) for place in places]
    known = [v for names in before for v in names.values()]
    tables = [(v, v.copy()) for v in known if type(v) in _TABLES]
    caches = [(v, v.cache_info().currsize) for v in known if isinstance(v, _CACHE)]
    try:
        yield
    finally:
        for place, names in zip(places, before, strict=True):
            for name, value in list(vars(place).items()):
                if value is not names.get(name, _MISSING) and _traced(value):
                    setattr(place, name, names[name]) if name in names else delattr(place, name)
        for table, content in tables:
            if _traced(table):
                table.clear()
                table.extend(content) if isinstance(table, list) else table.update(content)
        for cache, size in caches:
            if cache.cache_info().currsize > size:
                cache.cache_clear()


def _places(model: nn.Module) -> Iterator[Any]:
    """The classes of a tree below ``nn.Module``, their files, and what these take of the same package."""
    classes = {
        c for m in model.modules() for c in type(m).__mro__ if not c.__module__.startswith(("torch.", "builtins"))
    }
    files = {c.__module__ for c in classes}
    for name in list(files):
        for value in list(vars(sys.modules.get(name, types)).values()):
            other = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(other, str) and other.partition(".")[0] == name.partition(".")[0]:
                files.add(other)
                if isinstance(value, type):
                    classes.add(value)
    yield from classes
    yield from (sys.modules[name] for name in files if name in sys.modules)


def _traced(value: Any) -> bool:
    """Whether a value is a tensor of a trace, or a table with one."""
    if isinstance(value, torch.Tensor):
        return is_traced(value)
    if type(value) in (*_TABLES, tuple):
        return any(map(_traced, list(value.values() if isinstance(value, dict) else value)))
    return False
