"""The pages of the site: every block of Python on them runs, and the pages that are made say what there is."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pkgutil
import re
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import resfx
from resfx.methods.base import methods
from resfx.studies.results import rows_of
from website import pictures
from website.methods import PAGES, method_pages, options_of
from website.pages import ROOT, pages, run
from website.text import plain

OTHERS = [p for p in pages() if p.name not in ("README.md", "start.md") and p.parent != PAGES]


@pytest.fixture
def session(tmp_path, monkeypatch):
    """An empty folder; other libraries' logs stay as loud as they were."""
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("transformers").level
    yield tmp_path
    logging.getLogger("transformers").setLevel(level)


def test_the_first_ten_minutes(session):
    names: dict = {}
    out = run(ROOT / "docs" / "start.md", names)
    assert "4 rewritten by ddl" in out and "checked in ONNX Runtime" in out and "eager" in out
    assert isinstance(names["compiled"], torch._dynamo.OptimizedModule)
    assert {p.name for p in session.iterdir()} == {"folder", "model.onnx", "report.html", "report.svg"}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of what the guides are about
@pytest.mark.parametrize("page", OTHERS, ids=lambda p: p.stem)
def test_every_block_runs_and_prints_what_the_page_says(page, session):
    run(page, {})


def test_there_is_a_page_for_each_method_with_every_option():
    made = method_pages()
    assert set(made) == set(methods())
    assert {p.stem: p.read_text() for p in PAGES.glob("*.md")} == made, "make pages"
    for name, cls in methods().items():
        options = options_of(cls)
        assert {o for o, _, _ in options} == {f.name for f in dataclasses.fields(cls)}
        assert all(what for _, _, what in options), f"{cls.__name__}: an option that its docstring does not explain"
        assert f"resfx.{cls.__name__}" in made[name] and ":func:" not in made[name]
    assert plain("see :func:`resfx.scan`, as::\n\n    x") == "see `resfx.scan`, as:\n\n    x"


def test_the_page_of_a_method_says_what_the_study_found():
    made, study = method_pages(), json.loads((PAGES.parent / "study" / "results.json").read_text())
    rows = [row for setting in ("scratch", "graft") for row in rows_of(study["runs"], setting) if row.any["method"]]
    for row in rows:
        assert f"| {row.label} | " in (text := made[row.any["method"]["method"]]) and str(row.difference) in text
    studied = {row.any["method"]["method"] for row in rows}
    assert {name for name, text in made.items() if "Not in [the study]" in text} == set(methods()) - studied != set()


@pytest.mark.matrix
@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda p: p.stem)
def test_the_line_on_a_method_s_page_runs(page):
    """As it stands, with a model and its ids."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "vocab_size": 40,
    }
    model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **sizes)).eval()
    names = {"resfx": resfx, "model": model, "ids": torch.randint(40, (2, 8))}
    run(page, names)
    assert names["new"].report.changed


def test_links_of_every_page_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", path.read_text()):
            link = "".join(target)
            assert link.startswith("http") or os.path.exists(path.parent / link), f"{path.name}: {link}"


def test_the_site_has_every_page():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    assert "- methods/\n" in nav and "- benchmarks/\n" in nav
    listed = set(re.findall(r"(\S+\.md)$", nav, re.MULTILINE))
    there = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md") if p.parent != PAGES}
    assert there <= listed and listed - there == {"index.md", "changelog.md", "contributing.md"}


def test_names_of_the_reference_exist():
    for path in (ROOT / "docs" / "api").glob("*.md"):
        for name in re.findall(r"^::: (resfx\.\S+)", path.read_text(), re.MULTILINE):
            assert pkgutil.resolve_name(name).__doc__


@pytest.mark.parametrize(("name", "made"), [("duality", pictures.duality), ("cost", pictures.costs)])
def test_pictures_that_need_no_model_are_up_to_date(name, made):
    assert (pictures.PICTURES / f"{name}.svg").read_text() == made(), "make pages"


@pytest.mark.matrix
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = sorted((tmp_path / "site").rglob("*.html"))
    assert {p.parent.name for p in made} >= {"start", "which", "ddl", "rewriting"}
    for path in made:
        loads = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(https?:[^\s\">]+)", path.read_text())
        assert not loads, f"{path.parent.name}: {loads}"
