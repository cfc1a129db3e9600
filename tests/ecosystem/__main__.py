"""Every tool on a plain model and on a rewritten one of each scope: ``make ecosystem`` writes ``docs/ecosystem.md``.

A cell has a process of its own, so that one that crashes, hangs or leaves something behind spoils no other. Nothing
is asserted here beyond what is written: the table is the result.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from .tool import MODES, Make, Tool, refusal, tools

PAGE = Path(__file__).parents[2] / "docs" / "ecosystem.md"
PLAIN = "plain"
FAULT = "**NO**"


@dataclass(frozen=True)
class Cell:
    """What came of a tool on a model: a word, and what was said."""

    word: str
    said: str = ""


def attempt(tool: Tool, make: Make) -> Cell:
    if lacks := tool.lacks():
        return Cell("skipped", lacks)
    try:
        return Cell("works", tool.run(make) or "")
    except Exception as error:
        if os.environ.get("RESFX_TRACEBACK"):
            traceback.print_exc()
        if said := refusal(error):
            return Cell("refused", said)
        return Cell("fails", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def apart(tool: Tool, make: Make) -> Cell:
    """The same in a process of its own, ended with all it has started after the tool's time."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_apart, args=(tool, make, there))
    child.start()
    there.close()
    try:
        cell = here.recv() if here.poll(tool.seconds) else Cell("fails", f"not done after {tool.seconds} s")
    except EOFError:
        child.join()
        cell = Cell("fails", f"the process ended with {child.exitcode}")
    assert child.pid
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # what it has started goes with it
    child.join()
    return cell


def _apart(tool: Tool, make: Make, answer: multiprocessing.connection.Connection) -> None:
    os.setpgid(0, 0)
    warnings.simplefilter("ignore")
    answer.send(attempt(tool, make))
    answer.close()
    sys.stdout.flush()
    os._exit(0)  # no library's farewell may hold it up


def page(rows: dict[Tool, dict[str, Cell]], columns: list[str]) -> str:
    """The table as it stands."""
    words = [shown(row, column) for row in rows.values() for column in columns if column != PLAIN]
    lines = [
        "# The ecosystem: what acts on models, on rewritten ones", "",
        f"Made by `make ecosystem` (torch {torch.__version__.split('+')[0]}). A tool acts on a small Llama or GPT-2",
        "after the rewrite; beside it, what it does on the model as it is (`plain`). Where new parameters are at their",
        "start, results are the plain model's; where they are off it, those of a model that was changed before its",
        "rewrite, or of the same model before and after. `refused`: an error by name. What each row holds is its",
        "function in `tests/ecosystem`.", "",
        f"{words.count('works')} of {len(words)} cells work, {words.count('refused')} are refused by name,"
        f" {words.count('as plain: fails')} fail as the plain model does, {words.count(FAULT)} are faults"
        + (f"; {words.count('')} were not run (empty)." if "" in words else "."),
    ]  # fmt: skip
    for kind in dict.fromkeys(tool.kind for tool in rows):
        lines += ["", f"## {kind.capitalize()}", "", "| tool | " + " | ".join(columns) + " |",
                  "|---" * (1 + len(columns)) + "|"]  # fmt: skip
        for tool, row in rows.items():
            if tool.kind == kind:
                lines.append(f"| {tool.name} | " + " | ".join(shown(row, c) for c in columns) + " |")
    lines += ["", "## What was said", ""]
    for tool, row in rows.items():
        said: dict[str, list[str]] = {}
        for column, cell in row.items():
            if cell.said:
                what = re.sub(r"/\S*/lib/python[\d.]+/(site-packages/)?", "", cell.said)
                said.setdefault(f"{cell.word}: {what}", []).append(column)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", default="*", help="a glob over names, files and functions")
    parser.add_argument("--modes", nargs="*", default=[PLAIN, *MODES])
    parser.add_argument("--out", type=Path, help="docs/ecosystem.md where all is run; else nothing is written")
    options = parser.parse_args()
    everything = options.tools == "*" and set(options.modes) >= {PLAIN, *MODES}
    out = options.out or (PAGE if everything else None)
    import transformers

    transformers.logging.set_verbosity_error()
    makes = {column: Make(None if column == PLAIN else column) for column in options.modes}
    for make in makes.values():
        make()  # once, for all the processes that are forked
    rows: dict[Tool, dict[str, Cell]] = {}
    for tool in tools(options.tools).values():
        row = rows.setdefault(tool, {})
        for column, make in makes.items():
            begun = time.perf_counter()
            row[column] = apart(tool, make)
            said = f"{shown(row, column)}  {row[column].said}"
            print(f"{tool.name:60} {column:10} {time.perf_counter() - begun:5.1f} s  {said}", flush=True)
        if out:
            out.write_text(page(rows, options.modes))
    sys.exit(any(shown(row, column) == FAULT for row in rows.values() for column in row))


if __name__ == "__main__":
    main()
