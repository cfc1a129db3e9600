"""The notebooks are the pages and examples of today, and run from top to bottom in a kernel of their own."""

from __future__ import annotations

import os
import re

import pytest

from .borrowed import SOURCE

pytest.importorskip("jupytext")
from website import notebooks
from website.pages import blocks_of


@pytest.mark.parametrize("source", [*notebooks.PAGES, *notebooks.EXAMPLES], ids=lambda p: p.stem)
def test_it_is_made_of_its_source(source):
    assert notebooks.path_of(source).read_text() == notebooks.text_of(source), "make pages"
    cells = [c.source.strip() for c in notebooks.notebook(source).cells if c.cell_type == "code"]
    if source in notebooks.PAGES:
        assert cells == [b.text.strip() for b in blocks_of(source) if b.language == "python"]
    else:  # nothing of the script but its docstring and its last lines stands elsewhere
        *script, ending = re.split(r"\n{3}", source.read_text().partition('"""\n\n')[2].strip())
        assert re.sub(r"\n+", "\n", "\n".join(cells)) == re.sub(r"\n+", "\n", "\n".join([*script, "main([])"]))
        assert ending.startswith("if __name__")


@pytest.mark.matrix
@pytest.mark.parametrize("source", [*notebooks.PAGES, *notebooks.EXAMPLES], ids=lambda p: p.stem)
def test_it_runs(source, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(SOURCE.parent), os.environ.get("PYTHONPATH")])))
    made = notebooks.notebook(source)
    nbclient.NotebookClient(made, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(c.execution_count for c in made.cells if c.cell_type == "code")
