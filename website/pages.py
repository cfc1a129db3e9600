"""Pages that run: the Python blocks of a Markdown file, in order, in one session; what a block prints is held against
the ``text`` block behind it."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of code: its language, its text, and the line of the page that it starts on."""

    language: str
    text: str
    line: int


def blocks_of(path: Path) -> list[Block]:
    """All blocks of a page."""
    page = path.read_text()
    return [Block(m[1], m[2], page.count("\n", 0, m.start(2))) for m in FENCE.finditer(page)]


def pages() -> list[Path]:
    """Every page with Python in it, the README first."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [p for p in found if any(b.language == "python" for b in blocks_of(p))]


def run(path: Path, names: dict[str, Any]) -> str:
    """Run a page word for word in a session of ``names``; returns all that it printed."""
    blocks, printed = blocks_of(path), []
    names.setdefault("__name__", "__main__")
    for i, block in enumerate(blocks):
        if block.language != "python":
            continue
        out = io.StringIO()
        tree = ast.increment_lineno(ast.parse(block.text), block.line)
        with contextlib.redirect_stdout(out):
            exec(compile(tree, str(path), "exec"), names)
        printed.append(out.getvalue())
        after = blocks[i + 1] if i + 1 < len(blocks) else None
        if after and after.language == "text":
            assert lines(out.getvalue()) == lines(after.text), f"{path.name}:{after.line}"
    return "".join(printed)


def lines(text: str) -> list[str]:
    """Lines to compare: the size of a graph is another with each release of torch."""
    text = re.sub(r"\d+(?= graph nodes)", "some", text)
    return [line.rstrip() for line in text.strip().splitlines()]
