"""What was found and what was changed: as objects, a dictionary, text or a picture."""

from __future__ import annotations

import os

from .facts import Facts
from .picture import draw
from .text import report_text


class Report(Facts):
    """The result of :func:`resfx.scan` and of every rewrite; ``print`` shows it. See :class:`Facts` for what it has."""

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of the streams to an ``.svg`` file.

        Raises:
            OptionError: for a path that does not end in ``.svg``, or that cannot be written.
        """
        draw(self, path)

    def __str__(self) -> str:
        return report_text(self)

    def __repr__(self) -> str:  # what a notebook shows
        return str(self)
