"""Docstrings name things as Sphinx does, ``:func:`resfx.scan```; the site is Markdown."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object

from website.text import apart, plain


class Roles(Extension):
    """Applied to every docstring that griffe finds."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = plain(apart(obj.docstring.value))
