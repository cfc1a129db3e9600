"""The pages that run, as notebooks: ``python -m website.notebooks`` writes them into ``examples/notebooks``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jupytext

from website.pages import ROOT

NOTEBOOKS = ROOT / "examples" / "notebooks"
PAGES = [ROOT / "docs" / "start.md", ROOT / "docs" / "how.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]


def main() -> None:
    """Write all of them, without outputs."""
    NOTEBOOKS.mkdir(exist_ok=True)
    for page in PAGES:
        (NOTEBOOKS / f"{page.stem}.ipynb").write_text(text_of(page), encoding="utf-8")


def text_of(page: Path) -> str:
    """The file that a page becomes."""
    return jupytext.writes(notebook(page), fmt="ipynb")


def notebook(page: Path) -> Any:
    """A page as a notebook: blocks of Python are cells, links lead where they led."""
    moved = lambda m: f"]({os.path.relpath(page.parent / m[1], NOTEBOOKS)})"
    text = re.sub(r"\]\((?!http)([^)#\s]+)\)", moved, page.read_text(encoding="utf-8"))
    made = jupytext.reads(text, fmt="md")
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for i, cell in enumerate(made.cells):  # the same page makes the same file
        cell["id"] = f"{page.stem.replace('_', '-')}-{i}"
    return made


if __name__ == "__main__":
    main()
