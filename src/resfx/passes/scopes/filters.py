"""What a caller leaves out or in: globs over owner names and forms of adds, held against what the model has."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

from torch import nn

from resfx.errors import OptionError, meant, nearest

DEFAULT_FORMS = ("identity", "scaled", "parallel", "projection")
FORMS = (*DEFAULT_FORMS, "resampled", "outer")


def globs_of(globs: str | Sequence[str], option: str) -> tuple[str, ...]:
    """One glob or several as a tuple.

    Raises:
        OptionError: for anything but texts.
    """
    found = (globs,) if isinstance(globs, str) else globs
    if not isinstance(found, Collection) or not all(isinstance(g, str) and g for g in found):
        raise OptionError(f"{option} must be a glob over owner names, or several", f"{globs!r:.80}",
                          f"{option}='model.layers.*'")  # fmt: skip
    return tuple(found)


def forms_of(forms: str | Sequence[str]) -> tuple[str, ...]:
    """Forms of adds as a tuple.

    Raises:
        OptionError: for a form that does not exist.
    """
    found = (forms,) if isinstance(forms, str) else forms
    if not isinstance(found, Collection) or not found:
        raise OptionError("forms must be forms of residual adds", f"{forms!r:.80}", f"forms={DEFAULT_FORMS}")
    for form in found:
        if form not in FORMS:
            near = meant(str(form), FORMS)
            raise OptionError(f"unknown form {form!r}", f"the forms are: {', '.join(nearest(str(form), FORMS))}",
                              f"forms=({near!r},)" if near else "some of these")  # fmt: skip
    return tuple(found)


def refuse_idle_globs(include: Sequence[str], exclude: Sequence[str], owners: Sequence[str], tree: nn.Module) -> None:
    """Refuse a glob that does nothing: what it was meant for would be rewritten, or left, without a word.

    Args:
        owners: names of the modules that own the residual adds.

    Raises:
        OptionError: for an ``include`` that matches no owner, where others match, or an ``exclude`` that matches no
            module at all.
    """
    modules = [n for n, _ in tree.named_modules()]
    kept = [g for g in include if not any(fnmatch.fnmatchcase(o, g) for o in owners)]
    if kept and len(kept) < len(include):
        at_all = any(fnmatch.fnmatchcase(n, kept[0]) for n in modules)
        found = "modules of that name own no residual add" if at_all else "no module has such a name"
        raise OptionError(f"include={kept[0]!r} matches no residual add", found, _such_as(kept[0], owners))
    for glob in exclude:
        if not any(fnmatch.fnmatchcase(n, glob) for n in (*owners, *modules)):
            raise OptionError(f"exclude={glob!r} matches nothing", "no module has such a name", _such_as(glob, owners))


def _such_as(glob: str, owners: Sequence[str]) -> str:
    return f"globs over owner names, such as: {', '.join(n or '(root)' for n in nearest(glob, owners)[:4])}"
