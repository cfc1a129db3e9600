"""Every error the library raises on purpose. Each says what was asked, what was found, and what to try."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class ResfxError(Exception):
    """Base of all errors of this library.

    Args:
        asked: what the caller wanted.
        found: what stood in the way.
        try_: what to do about it.
    """

    def __init__(self, asked: str, found: str = "", try_: str = "") -> None:
        self.asked, self.found, self.try_ = asked, found, try_
        parts = [asked]
        if found:
            parts.append(f"  found: {found}")
        if try_:
            parts.append(f"  try:   {try_}")
        super().__init__("\n".join(parts))


class CaptureError(ResfxError):
    """The model could not be turned into a graph.

    Attributes:
        inside: path of the innermost module whose call was being traced, where one was.
    """

    inside: str = ""


class ModelError(CaptureError):
    """The model itself raises on the inputs given; the error it raised is the cause of this one."""


class InputError(ResfxError, TypeError):
    """Example inputs in a form that is not taken, or that do not fit the signature of the model's ``forward``."""


class OptionError(ResfxError, ValueError, TypeError):
    """An option, a method's setting or a path that is not one of those that are taken."""


class NoSitesError(ResfxError):
    """Nothing was left to rewrite: no residual add, or none that the filters and the method accept."""


class ConflictError(ResfxError):
    """Two rewrites claim the same residual add."""


class CheckError(ResfxError):
    """The rewritten graph does not do what was promised; the rewrite was undone."""


class VariantError(ResfxError):
    """A call needs another capture of the model, and that capture cannot carry the same rewrite."""


class SaveError(ResfxError):
    """A save folder is damaged, foreign, or does not belong to this model."""


class ExportError(ResfxError):
    """Lowering failed, or the lowered model disagrees with the eager one."""


class MissingPackageError(ResfxError, ImportError):
    """An optional package is needed and not installed."""


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """``names`` with those like ``name`` first, for a message that lists what there is."""
    known = list(dict.fromkeys(names))
    like = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return like + [n for n in known if n not in like]


def meant(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that a misspelt ``name`` stands for, if one is near enough."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)), None)


def path_of(value: Any, asked: str) -> Path:
    """A path that a caller gave.

    Args:
        asked: what it is for, e.g. ``"cannot write a file"``.

    Raises:
        OptionError: if it is none, naming its class.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise OptionError(asked, f"a {type(value).__name__} for its path", "a path: a text or a pathlib.Path")
    return Path(value)


def require(package: str, extra: str, purpose: str):  # noqa: ANN201 - a module
    """Import an optional package, or say how to get it.

    Raises:
        MissingPackageError: if ``package`` cannot be imported.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} needs the package {package!r}", str(error), f"pip install 'resfx[{extra}]'"
        ) from error
