"""The notebooks are the pages of today, and run from top to bottom in a kernel of their own."""

from __future__ import annotations

import os

import pytest

from .borrowed import SOURCE

pytest.importorskip("jupytext")
from website import notebooks
from website.pages import blocks_of


@pytest.mark.parametrize("page", notebooks.PAGES, ids=lambda p: p.stem)
def test_it_is_made_of_the_page(page):
    path = notebooks.NOTEBOOKS / f"{page.stem}.ipynb"
    assert path.read_text() == notebooks.text_of(page), "make pages"
    cells = [c.source for c in notebooks.notebook(page).cells if c.cell_type == "code"]
    blocks = [b.text for b in blocks_of(page) if b.language == "python"]
    assert [c.strip() for c in cells] == [b.strip() for b in blocks]


@pytest.mark.matrix
@pytest.mark.parametrize("page", notebooks.PAGES, ids=lambda p: p.stem)
def test_it_runs(page, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(SOURCE.parent), os.environ.get("PYTHONPATH")])))
    made = notebooks.notebook(page)
    nbclient.NotebookClient(made, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(c.execution_count for c in made.cells if c.cell_type == "code")
