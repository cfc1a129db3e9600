"""Every tool on a plain model and on a rewritten one of each scope: ``make ecosystem`` writes ``docs/ecosystem.md``.

A cell has a process of its own, so that one that crashes, hangs or leaves something behind spoils no other. Nothing
is asserted here beyond what is written: the table is the result. Cells are kept in ``build/ecosystem.json`` with a
digest of the library's sources: a run that was stopped goes on, and a cell is repeated when the sources have changed
(``--missing``: only when it was never run), or when its tool is named.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import transformers

from tests.digest import version

from .cell import apart, keep, kept
from .page import FAULT, PLAIN, page, shown
from .tool import MODES, Make, tools

PAGE = Path(__file__).parents[2] / "docs" / "ecosystem.md"


def main() -> None:
    """Run what is asked and was not run; write the page of all that was."""
    parser = argparse.ArgumentParser(prog="python -m tests.ecosystem", description=__doc__)
    parser.add_argument("tools", nargs="*", help="globs over names, files and functions; all by default")
    parser.add_argument("--modes", nargs="*", default=[PLAIN, *MODES], help="columns to run; all by default")
    parser.add_argument("--missing", action="store_true", help="keep cells of other versions of the library")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    makes = {column: Make(None if column == PLAIN else column) for column in options.modes}
    for make in makes.values():
        make()  # once, for all the processes that are forked
    rows, every = kept(), tools()
    for tool in [one for glob in options.tools or ["*"] for one in tools(glob).values()]:
        row = rows.setdefault(tool.name, {})
        for column, make in makes.items():
            old = row.get(column)
            if old and not options.tools and (options.missing or old.code == version()):
                continue
            begun = time.perf_counter()
            row[column] = apart(tool, make)
            keep(rows)
            said = f"{shown(row, column)}  {row[column].said}"
            print(f"{tool.name:60} {column:10} {time.perf_counter() - begun:5.1f} s  {said}", flush=True)
        options.out.write_text(page(list(every.values()), rows, [PLAIN, *MODES]))
    sys.exit(any(shown(rows.get(name, {}), column) == FAULT for name in every for column in MODES))


if __name__ == "__main__":
    main()
