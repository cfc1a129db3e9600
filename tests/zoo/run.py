"""Run the zoo and write its coverage table: ``python -m tests.zoo [names] [--compile] [--onnx] [--missing] [--no-docs]``.

A worker process takes one architecture after another; if it dies or needs too long, the next one goes on. Results are
kept in ``build/zoo.json`` with a digest of the library's sources: a stopped run continues, and a line is repeated
when the sources have changed (``--missing``: only when it has no result at all).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STORE, PAGE = ROOT / "build" / "zoo.json", ROOT / "docs" / "zoo.md"
LIMIT, BATCH = 120, 160  # CPU seconds for one stage of one architecture; architectures for one worker
SLACK = 20  # a worker that uses no CPU at all is given up after this many times the limit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="names or globs; all by default")
    parser.add_argument("--compile", action="store_true", help='also torch.compile(backend="aot_eager")')
    parser.add_argument("--onnx", action="store_true", help="also to ONNX, and through ONNX Runtime")
    parser.add_argument("--missing", action="store_true", help="keep results of other versions of the library")
    parser.add_argument("--limit", type=int, default=LIMIT, help="CPU seconds for one stage of one architecture")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/zoo.md as it is")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options)
        return
    from tests.digest import version

    from .libraries import is_installed
    from .page import page
    from .table import ENTRIES

    kept: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}

    def lacks(name: str) -> bool:
        old = kept.get(name, {})
        asked = [f for f, on in (("compiled", options.compile), ("exported", options.onnx)) if on]
        return (
            not old
            or not (options.missing or old["code"] == version())
            or (bool(old["rewritten"]) and any(old[f] is None for f in asked))
        )

    if away := sorted({e.source for e in ENTRIES if not is_installed(e.source)}):
        print("not installed, so not run:", ", ".join(away), flush=True)
    there = [e.name for e in ENTRIES if is_installed(e.source)]
    chosen = dict.fromkeys(name for g in options.names or ["*"] for name in there if fnmatch.fnmatchcase(name, g))
    STORE.parent.mkdir(exist_ok=True)
    for name, result in _results([n for n in chosen if options.names or lacks(n)], options):
        kept[name] = result
        STORE.write_text(json.dumps(kept, indent=1))
        good = result["captured"] and result["want"] == result["found"] and result["exact"] is not False
        print("ok  " if good else "MISS", name, result["want"], result["found"], result["streams_want"],
              result["streams"], result["error"][:160], "compiled", result["compiled"], result["compile_error"][:160],
              "exported", result["exported"], result["export_error"][:160], f"{result['seconds']}s", flush=True)  # fmt: skip
    if not options.no_docs:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page([kept[e.name] for e in ENTRIES if e.name in kept]))


def _work(options: argparse.Namespace) -> None:
    """Take names from stdin, one a line; answer with JSON lines, one a stage."""
    import torch

    from .check import stages
    from .table import BY_NAME

    torch.set_num_threads(1)
    answer = os.fdopen(os.dup(1), "w")  # models may print
    os.dup2(2, 1)
    for line in sys.stdin:
        _allow(options.limit)
        for result in stages(BY_NAME[line.strip()], options.compile, options.onnx):
            print(json.dumps(result.to_dict()), file=answer, flush=True)
            _allow(options.limit)


def _allow(seconds: int) -> None:
    """Let this process use so much more CPU time; beyond it the system ends it (``SIGXCPU``)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, hard))


def _results(names: list[str], options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    from tests.digest import version

    from .check import Result
    from .table import BY_NAME

    worker = None
    for number, name in enumerate(names):
        if worker is None or number % BATCH == 0:
            _stop(worker)
            worker = _start(options)
        entry = BY_NAME[name]
        result = Result(name, entry.source, entry.blocks, streams_want=entry.streams, code=version()).to_dict()
        _say(worker, name)
        while result["stage"] != "done":
            line = _hear(worker, SLACK * options.limit)
            if line:
                result = json.loads(line)
                continue
            why = _ended(worker, options.limit)
            fields = {"compile": ("compiled", "compile_error"), "export": ("exported", "export_error")}
            flag, text = fields.get(result["stage"], ("captured", "error"))
            result |= {flag: False, text: why, "stage": "done"}
            worker = None
            break
        yield name, result
    _stop(worker)


def _start(options: argparse.Namespace) -> subprocess.Popen[str]:
    flags = [f"--{f}" for f in ("compile", "onnx") if getattr(options, f)]
    command = [sys.executable, "-m", "tests.zoo", "--worker", "--limit", str(options.limit), *flags]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def _say(worker: subprocess.Popen[str], name: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(name + "\n")
    worker.stdin.flush()


def _hear(worker: subprocess.Popen[str], seconds: int) -> str:
    """The worker's next line; empty if it ended or said nothing for so many seconds of wall time."""
    assert worker.stdout is not None
    ready, _, _ = select.select([worker.stdout], [], [], seconds)
    return worker.stdout.readline() if ready else ""


def _ended(worker: subprocess.Popen[str], limit: int) -> str:
    """End a worker that did not answer; why it did not."""
    try:
        code = worker.wait(5)
    except subprocess.TimeoutExpired:
        _stop(worker)
        return f"no answer in {SLACK * limit} seconds"
    return f"more than {limit} CPU seconds" if code == -signal.SIGXCPU else f"the process died ({code})"


def _stop(worker: subprocess.Popen[str] | None) -> None:
    if worker is not None:
        worker.kill()
        worker.wait()
