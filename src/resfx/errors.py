"""Every error the library raises on purpose. Each says what was asked, what was found, and what to try."""

from __future__ import annotations


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
    """The model could not be turned into a graph."""


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
