"""The README says what is there: its table of methods, the commands it names, the names it uses, and it runs."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

import pytest
import torch
from first_use import PLAIN, ids

import resfx
from resfx.methods.base import methods
from resfx.report.text import methods_table

ROOT = Path(__file__).parents[1]
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


LLAMA = {"model": PLAIN["llama"].make, "ids": lambda: ids(2, 16)}


@pytest.mark.parametrize("made", [{}, LLAMA], ids=["as it stands", "llama"])
def test_every_python_block_runs_in_order(made, tmp_path, monkeypatch, capsys):
    """Word for word, in one session; the second time with another model where the first block makes one."""
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("transformers").level
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        for statement in ast.parse(block).body:
            target = statement.targets[0].id if isinstance(statement, ast.Assign) else ""
            if block is blocks[0] and target in made:
                names[target] = made[target]()
            else:
                exec(compile(ast.Module([statement], []), "README.md", "exec"), names)
    logging.getLogger("transformers").setLevel(level)
    out = capsys.readouterr().out
    assert "4 rewritten by ddl" in out and "checked in ONNX Runtime" in out and "eager" in out
    assert isinstance(names["compiled"], torch._dynamo.OptimizedModule)
    report = names["new"].report
    assert report.methods_at(report.changed[0]) == ["scaled"]
    assert {p.name for p in tmp_path.iterdir()} == {"folder", "model.onnx"}
