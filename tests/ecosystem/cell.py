"""One tool on one model: tried in a process of its own, kept in a file between runs."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.digest import version

from .tool import Limit, Make, Tool, refusal

STORE = Path(__file__).parents[2] / "build" / "ecosystem.json"


@dataclass(frozen=True)
class Cell:
    """What came of a tool on a model.

    Attributes:
        word: ``works``, ``refused``, ``limit``, ``fails`` or ``skipped``.
        said: what was said, in the tool's words or an error's.
        code: a digest of the library's sources that it was run with.
    """

    word: str
    said: str = ""
    code: str = ""


Rows = dict[str, dict[str, Cell]]
"""Cells by the tool's name and the column."""


def kept() -> Rows:
    """Cells of the runs so far."""
    if not STORE.exists():
        return {}
    return {name: {c: Cell(**cell) for c, cell in row.items()} for name, row in json.loads(STORE.read_text()).items()}


def keep(rows: Rows) -> None:
    """Write them for the next run; a run that is stopped leaves a whole file."""
    STORE.parent.mkdir(exist_ok=True)
    partial = STORE.with_suffix(".partial")
    partial.write_text(
        json.dumps({n: {c: asdict(cell) for c, cell in row.items()} for n, row in rows.items()}, indent=1)
    )
    partial.replace(STORE)


def attempt(tool: Tool, make: Make) -> Cell:
    """Run a tool; never raises for what it does."""
    if lacks := tool.lacks():
        return Cell("skipped", lacks, version())
    try:
        return Cell("works", tool.run(make) or "", version())
    except Limit as limit:
        return Cell("limit", str(limit), version())
    except Exception as error:
        if os.environ.get("RESFX_TRACEBACK"):
            traceback.print_exc()
        if said := refusal(error):
            return Cell("refused", said, version())
        return Cell("fails", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", version())


def apart(tool: Tool, make: Make) -> Cell:
    """The same in a process of its own, ended with all it has started after the tool's time."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_apart, args=(tool, make, there))
    child.start()
    there.close()
    try:
        cell = here.recv() if here.poll(tool.seconds) else Cell("fails", f"not done after {tool.seconds} s", version())
    except EOFError:
        child.join()
        cell = Cell("fails", f"the process ended with {child.exitcode}", version())
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
