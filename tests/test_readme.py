"""The README says what is there: its table of methods, the commands it names, the names it uses, and it runs."""

from __future__ import annotations

import dataclasses
import re

from first_use import PLAIN, ids

import resfx
from resfx.methods.base import methods
from resfx.report.text import methods_table
from website.pages import ROOT, run

README = (ROOT / "README.md").read_text()


def test_table_of_methods_is_the_list_of_methods():
    assert methods_table(markdown=True) in README
    for cls in methods().values():
        assert getattr(resfx, cls.__name__) is cls, "a method is a public name"


def test_commands_and_names_exist():
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)) <= targets
    for name in re.findall(r"resfx\.([a-zA-Z_.]+)\(", README):
        found = resfx
        for part in name.split("."):
            found = getattr(found, part)


def test_every_method_starts_from_its_name_and_round_trips():
    from resfx.methods.base import method_of

    for name, cls in methods().items():
        config = method_of(name)
        fields = config.to_dict()
        assert fields.pop("method") == name
        assert cls(**fields) == config


def test_it_runs_with_a_model_and_its_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = dataclasses.replace(PLAIN["llama"], sizes={**PLAIN["llama"].sizes, "num_hidden_layers": 1})
    names = {"model": small.make(), "ids": ids(2, 16)}
    out = run(ROOT / "README.md", names)
    assert "2 rewritten by ddl" in out
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", "model.onnx"}
