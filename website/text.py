"""Docstrings as Markdown."""

from __future__ import annotations

import re

NAMES = re.compile(r"^    ((?:\w+, )+\w+):((?: .*)?(?:\n {8}.*)*)", re.MULTILINE)
TABLE = re.compile(
    r"^(?P<indent> *)(?P<rule>==+(?: +=+)+)\n(?P<body>(?:.+\n)+)(?P=indent)(?P=rule)(?:\n|\Z)", re.MULTILINE
)
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`~?([\w.]+)`")


def plain(text: str) -> str:
    """Sphinx's roles as code, the two colons before a block of code as one, and tables as Markdown's."""
    return TABLE.sub(_table, re.sub(r"::(?=\n\n)", ":", ROLE.sub(r"`\1`", text)))


def _table(match: re.Match[str]) -> str:
    """A simple table of reStructuredText; what has an empty first cell goes on with the row before."""
    rule, indent = match["rule"], match["indent"]
    starts = [m.start() for m in re.finditer("=+", rule)]
    ends = [*starts[1:], None]
    head: list[str] = []
    rows: list[list[str]] = []
    for line in (raw.removeprefix(indent) for raw in match["body"].splitlines()):
        cells = [line[a:b].strip().replace("|", "\\|") for a, b in zip(starts, ends, strict=True)]
        if line == rule:
            head, rows = rows[0], []
        elif cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{before} {more}".strip() for before, more in zip(rows[-1], cells, strict=True)]
    lines = [head or [""] * len(starts), ["---"] * len(starts), *rows]
    return "\n".join(f"{indent}| {' | '.join(cells)} |" for cells in lines) + "\n"


def apart(text: str) -> str:
    """A docstring whose ``a, b: text`` is an entry for each."""
    return NAMES.sub(lambda m: "\n".join(f"    {name}:{m[2]}" for name in m[1].split(", ")), text)


def linked(text: str) -> str:
    """Papers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
