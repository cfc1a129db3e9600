"""Pages and examples as notebooks: ``python -m website.notebooks`` writes them into ``examples/notebooks``."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import jupytext

from website.pages import ROOT

NOTEBOOKS = ROOT / "examples" / "notebooks"
PAGES = [ROOT / "docs" / "start.md", ROOT / "docs" / "how.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
EXAMPLES = [ROOT / "examples" / f"{name}.py" for name in ("nanogpt", "graft", "vit", "serve", "own_method")]


def main() -> None:
    """Write all of them, without outputs."""
    NOTEBOOKS.mkdir(exist_ok=True)
    for source in (*PAGES, *EXAMPLES):
        path_of(source).write_text(text_of(source), encoding="utf-8")


def path_of(source: Path) -> Path:
    """Where the notebook of a page or an example lies."""
    return NOTEBOOKS / f"{source.stem}{'_example' if source in EXAMPLES else ''}.ipynb"


def text_of(source: Path) -> str:
    """The file that a page or an example becomes."""
    return jupytext.writes(notebook(source), fmt="ipynb")


def notebook(source: Path) -> Any:
    """A page or an example as a notebook."""
    text = source.read_text(encoding="utf-8")
    made = jupytext.reads(
        *((_cells(text), "py:percent") if source in EXAMPLES else (_moved(text, source.parent), "md"))
    )
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for i, cell in enumerate(made.cells):  # the same source makes the same file
        cell["id"] = f"{path_of(source).stem.replace('_', '-')}-{i}"
    return made


def _moved(text: str, folder: Path) -> str:
    """A page whose links lead where they led."""
    moved = lambda m: f"]({os.path.relpath(folder / m[1], NOTEBOOKS)})"
    return re.sub(r"\]\((?!http)([^)#\s]+)\)", moved, text)


def _cells(text: str) -> str:
    """A script in cells: its docstring as text, a class or function each, and a call of ``main`` as it is run."""
    title, *statements, _ = ast.parse(text).body
    assert isinstance(title, ast.Expr) and isinstance(title.value, ast.Constant)
    cells = ["# %% [markdown]", *(f"# {line}".rstrip() for line in str(title.value.value).strip().splitlines())]
    lines, last = text.splitlines(), None
    for statement in statements:
        if last is not None and _plain(last) and _plain(statement):
            cells += lines[last.end_lineno or 0 : statement.end_lineno]
        else:
            cells += ["", "# %%", *lines[_first(statement) - 1 : statement.end_lineno]]
        last = statement
    return "\n".join([*cells, "", "# %%", "main([])", ""])


def _plain(statement: ast.stmt) -> bool:
    return not isinstance(statement, ast.ClassDef | ast.FunctionDef)


def _first(statement: ast.stmt) -> int:
    """The line where a statement begins, a decorator's included."""
    return min(node.lineno for node in (statement, *getattr(statement, "decorator_list", ())))


if __name__ == "__main__":
    main()
