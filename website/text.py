"""Docstrings as Markdown."""

from __future__ import annotations

import re

NAMES = re.compile(r"^    ((?:\w+, )+\w+):((?: .*)?(?:\n {8}.*)*)", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?([\w.]+)`")


def plain(text: str) -> str:
    """Sphinx's roles as code, and the two colons before a block of code as one."""
    return re.sub(r"::(?=\n\n)", ":", ROLE.sub(r"`\1`", text))


def apart(text: str) -> str:
    """A docstring whose ``a, b: text`` is an entry for each."""
    return NAMES.sub(lambda m: "\n".join(f"    {name}:{m[2]}" for name in m[1].split(", ")), text)


def linked(text: str) -> str:
    """Papers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
