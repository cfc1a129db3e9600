"""The table of cells, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from .cell import Cell, Rows
from .tool import Tool

PLAIN = "plain"
FAULT = "**NO**"


def page(tools: Sequence[Tool], rows: Rows, columns: Sequence[str]) -> str:
    """The whole page: a row for each tool, empty where it was not run."""
    words = [shown(rows.get(tool.name, {}), c) for tool in tools for c in columns if c != PLAIN]
    lines = [
        "# The ecosystem: what acts on models, on rewritten ones", "",
        f"Made by `make ecosystem` (torch {torch.__version__.split('+')[0]}). A tool acts on a small Llama or GPT-2",
        "after the rewrite; beside it, what it does on the model as it is (`plain`). Where new parameters are at their",
        "start, results are the plain model's; where they are off it, those of a model that was changed before its",
        "rewrite, or of the same model before and after. `refused`: an error by name. `limit`: one of the tool's own,",
        "seen on a plain model of the same form. What each row holds is its function in `tests/ecosystem`.", "",
        f"{words.count('works')} of {len(words)} cells work, {words.count('refused')} are refused by name,"
        f" {words.count('as plain: fails')} fail as the plain model does,"
        f" {words.count('limit')} are a limit of the tool's own, {words.count(FAULT)} are faults"
        + (f"; {words.count('')} were not run (empty)." if "" in words else "."),
    ]  # fmt: skip
    for kind in dict.fromkeys(tool.kind for tool in tools):
        lines += ["", f"## {kind.replace('_', ' ').capitalize()}", "", "| tool | " + " | ".join(columns) + " |",
                  "|---" * (1 + len(columns)) + "|"]  # fmt: skip
        for tool in tools:
            if tool.kind == kind:
                row = rows.get(tool.name, {})
                lines.append(f"| {tool.name} | " + " | ".join(shown(row, c) for c in columns) + " |")
    lines += ["", "## What was said", ""]
    for tool in tools:
        said: dict[str, list[str]] = {}
        for column in columns:
            if (cell := rows.get(tool.name, {}).get(column)) and cell.said:
                said.setdefault(f"{cell.word}: {_text(cell.said)}", []).append(column)
        lines += [f"- {tool.name} ({', '.join(where)}) {what}" for what, where in said.items()]
    return "\n".join(lines) + "\n"


def shown(row: dict[str, Cell], column: str) -> str:
    """The word of a cell, in the light of what the plain model does."""
    cell, plain = row.get(column), row.get(PLAIN)
    if cell is None or cell.word != "fails":
        return cell.word if cell else ""
    if column == PLAIN:
        return "fails"
    return "as plain: fails" if plain is not None and plain.word == "fails" else FAULT


def _text(said: str) -> str:
    """Without the paths of where it was run."""
    said = re.sub(r"(['\"]?)/tmp/[^\s'\"]+\1", "folder", said)
    return re.sub(r"/\S*/lib/python[\d.]+/(site-packages/)?", "", said)
