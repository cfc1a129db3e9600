"""Run the zoo and write its coverage table: ``python -m tests.zoo [names] [--compile] [--redo] [--no-docs]``.

A worker process takes one architecture after another; if it dies or hangs, the next one goes on. Results are kept in
``build/zoo.json``, so that a stopped run continues and a few names can be repeated.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STORE, PAGE = ROOT / "build" / "zoo.json", ROOT / "docs" / "zoo.md"
LIMIT, BATCH = 240, 40  # seconds for one architecture; architectures for one worker


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="names or globs; all by default")
    parser.add_argument("--redo", action="store_true", help="also those with a kept result that passed")
    parser.add_argument("--compile", action="store_true", help='also torch.compile(backend="aot_eager")')
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds for one architecture")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/zoo.md as it is")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.compile)
        return
    from .page import page
    from .table import ENTRIES

    kept: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    globs = options.names or ["*"]
    chosen = dict.fromkeys(e.name for g in globs for e in ENTRIES if fnmatch.fnmatchcase(e.name, g))
    todo = [n for n in chosen if options.redo or options.names or n not in kept]
    STORE.parent.mkdir(exist_ok=True)
    for name, result in _results(todo, options):
        kept[name] = result
        STORE.write_text(json.dumps(kept, indent=1))
        good = result["captured"] and result["want"] == result["found"] and result["exact"] is not False
        print("ok  " if good else "MISS", name, result["want"], result["found"], result["streams_want"],
              result["streams"], result["error"][:160], f"{result['seconds']}s", flush=True)  # fmt: skip
    if not options.no_docs:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page([kept[e.name] for e in ENTRIES if e.name in kept]))


def _work(compile: bool) -> None:
    """Take names from stdin, one a line, answer with JSON lines."""
    import torch

    from .check import check
    from .table import BY_NAME

    torch.set_num_threads(1)
    answer = os.fdopen(os.dup(1), "w")  # models may print
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(check(BY_NAME[line.strip()], compile).to_dict()), file=answer, flush=True)


def _results(names: list[str], options: argparse.Namespace) -> Any:
    from .check import Result
    from .table import BY_NAME

    worker, done = None, 0
    for name in names:
        if worker is None or done % BATCH == 0:
            _stop(worker)
            worker = _start(options.compile)
        done += 1
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(name + "\n")
        worker.stdin.flush()
        ready, _, _ = select.select([worker.stdout], [], [], options.limit)
        line = worker.stdout.readline() if ready else ""
        if line:
            yield name, json.loads(line)
            continue
        entry = BY_NAME[name]
        error = "the worker died" if ready else f"no answer in {options.limit} seconds"
        yield name, Result(name, entry.source, entry.blocks, streams_want=entry.streams, error=error).to_dict()
        _stop(worker)
        worker = None
    _stop(worker)


def _start(compile: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.zoo", "--worker", *(["--compile"] if compile else [])]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def _stop(worker: subprocess.Popen[str] | None) -> None:
    if worker is not None:
        worker.kill()
        worker.wait()
