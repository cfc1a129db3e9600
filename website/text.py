"""Docstrings as Markdown."""

from __future__ import annotations

import re

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?([\w.]+)`")


def plain(text: str) -> str:
    """Sphinx's roles as code, and the two colons before a block of code as one."""
    return re.sub(r"::(?=\n\n)", ":", ROLE.sub(r"`\1`", text))


def linked(text: str) -> str:
    """Papers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
