"""Some libraries import torchvision for image transforms and one layer; their models run without. A stand-in for that.

Only while they are imported: afterwards nothing in the process can take the stand-in for the real package.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from types import ModuleType
from typing import Any


class _Anything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        member = _Anything(name, (cls,), {})
        setattr(cls, name, member)
        return member


class _Missing(metaclass=_Anything):
    """Stands for any class or function of torchvision."""


class _Module(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "FrozenBatchNorm2d":
            return type("FrozenBatchNorm2d", (), {})
        return _Missing


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, cls, is_package=True)  # type: ignore[arg-type]
        return None

    @staticmethod
    def create_module(spec: Any) -> ModuleType:
        return _Module(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Nothing to run."""


def import_timm() -> ModuleType:
    """timm, with torchvision or without.

    Raises:
        ImportError: if timm is not installed.
    """
    return imported("timm")


def imported(name: str) -> ModuleType:
    """A package that imports torchvision, with it or without.

    Raises:
        ImportError: if the package is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        sys.meta_path.insert(0, _Finder)
        try:
            return importlib.import_module(name)
        finally:
            sys.meta_path.remove(_Finder)
            for module in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[module]
    return importlib.import_module(name)
