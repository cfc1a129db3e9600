"""The order of a run: a process a part, within the time there is, and the page after each."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import child
from .choices import snippet
from .parts import Part, parts
from .record import Record
from .report import measured, page

ATTEMPTS = 12  # processes of one part: each that ends early leaves one row more


class Run:
    """A run over the chosen parts."""

    def __init__(self, given: argparse.Namespace, facts: dict[str, Any]) -> None:
        self.given, self.facts, self.begin = given, facts, time.monotonic()
        self.machine = json.dumps({k: facts.get(k) for k in ("card", "driver", "torch", "triton")}, sort_keys=True)
        self.lock = threading.Lock()
        self.all = parts()
        starts = tuple(given.only or ("",))
        self.chosen = [p for p in self.all.values() if p.name.startswith(starts)]
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "machine").write_text(self.machine)
        self.records = {name: Record(given.out, name).load(self.machine) for name in self.all}
        if given.again:
            for part in self.chosen:
                self.records[part.name] = Record(given.out, part.name)
                self.records[part.name].save(self.machine)

    def left(self) -> float:
        """Minutes."""
        return self.given.minutes - (time.monotonic() - self.begin) / 60

    def go(self) -> None:
        """All chosen parts: checks side by side, what is timed alone."""
        checks = [p for p in self.chosen if p.is_check]
        with ThreadPoolExecutor(1 if self.given.here else max(1, self.given.jobs)) as pool:
            list(pool.map(self.part, checks))
        for part in self.chosen:
            if not part.is_check:
                self.part(part)

    def part(self, part: Part) -> None:
        """One part, if it is not done and there is time."""
        record = self.records[part.name]
        if record.done:
            self.say(part, "done before")
            return
        if self.left() < part.minutes:
            record.note = f"no time left: {self.left():.1f} of {self.given.minutes:g} minutes"
        else:
            record.note = ""
            begin = time.monotonic()
            self.attempt(part, record)
            record = self.records[part.name]
            record.seconds += time.monotonic() - begin
        record.save(self.machine)
        failed = record.failures()
        self.say(part, record.note or f"{len(record.rows)} rows, {len(failed)} failed, {record.seconds:.0f} s")
        for text in failed:
            print(f"    {text}", flush=True)
        self.write()

    def attempt(self, part: Part, record: Record) -> None:
        """Processes of a part, until all rows are there, or none is added, or the time is up."""
        last = self.left() < part.limit
        until = time.monotonic() + 60 * min(part.limit, self.left())
        note = ""
        for _ in range(ATTEMPTS):
            record.save(self.machine)
            before = len(record.rows)
            status = self.process(part, until - time.monotonic())
            record = self.records[part.name] = Record(self.given.out, part.name).load(self.machine)
            if status == 0:
                return
            over = status is None
            if over and last:  # the next run goes on with the same row
                note = f"cut short: {self.given.minutes:g} minutes are spent"
                break
            note = f"ended after {part.limit:g} minutes" if over else f"its process ended with status {status}"
            if record.running:
                record.rows[record.running] = {"failed": note}
                record.running = ""
            if over or len(record.rows) == before:
                break
        record.note = record.note or note + (self.tail(part) if "status" in note else "")

    def process(self, part: Part, seconds: float) -> int | None:
        """The status of one; ``None`` if it had to be ended."""
        if self.given.here:
            return child.run(argparse.Namespace(**vars(self.given) | {"part": part.name}), self.machine)
        with self.log(part).open("a") as log:
            command = [sys.executable, "-m", "benchmarks.gpu", "--part", part.name, *options(self.given)]
            begun = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2],
                                     start_new_session=True)  # fmt: skip
            try:
                return begun.wait(max(seconds, 1))
            except subprocess.TimeoutExpired:
                return None
            finally:
                if begun.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(begun.pid, signal.SIGKILL)  # and the compiler's own processes
                    begun.wait()

    def log(self, part: Part) -> Path:
        """Where a part's process says what it says."""
        return self.given.out / f"{part.name.replace('/', '-')}.log"

    def tail(self, part: Part) -> str:
        """The last line of its log."""
        lines = self.log(part).read_text(errors="replace").strip().splitlines() if self.log(part).exists() else []
        return f": {lines[-1][:200]}" if lines else ""

    def say(self, part: Part, text: str) -> None:
        """A line of progress."""
        print(f"{(time.monotonic() - self.begin) / 60:5.1f} min  {part.name}: {text}", flush=True)

    def write(self) -> None:
        """The page and its figures."""
        with self.lock:
            name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", self.facts["card"].lower()).strip("-")
            command = shlex.join(["python", "-m", "benchmarks.gpu", *(Path(a).name or a for a in sys.argv[1:])])
            data = self.given.results / "data"
            data.mkdir(parents=True, exist_ok=True)
            rows = {n: r.rows for n, r in self.records.items() if r.rows}
            (data / f"{name}.json").write_text(json.dumps({"facts": self.facts, "parts": rows}, indent=1) + "\n")
            (self.given.results / f"{name}.md").write_text(page(self.facts, command, self.records))

    def held(self) -> bool:
        """Whether every check that was asked for was made and held."""
        checks = [self.records[p.name] for p in self.chosen if p.is_check]
        return all(r.done and r.rows and not r.failures() for r in checks)


def options(given: argparse.Namespace) -> list[str]:
    """The command line of a part's process."""
    flags = ["--dry"] if given.dry else []
    authors = ["--authors", *given.authors] if given.authors else []
    return [*flags, "--out", str(given.out), "--rounds", str(given.rounds), *authors]


def asked(given: argparse.Namespace) -> dict[str, Any]:
    """Card and versions, from a process of their own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--facts", *options(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else {"missing": done.stderr.strip()[-2000:]}


def run(given: argparse.Namespace) -> int:
    """All of it; the exit status."""
    if given.list:
        print("\n".join(parts()))
        return 0
    facts = asked(given)
    if "missing" in facts:
        print(f"No device to measure on: {facts['missing']}\n`--dry` runs all parts on tiny shapes, without one.",
              file=sys.stderr)  # fmt: skip
        return 2
    print(*(f"{k} {v}" for k, v in facts.items()), sep="; ", flush=True)
    work = Run(given, facts)
    if not work.chosen:
        print(f"--only {' '.join(given.only)}: no such part; --list names them", file=sys.stderr)
        return 2
    work.go()
    work.write()
    if lines := snippet(measured(work.records), facts):
        print(f"\nFor TABLE of src/resfx/ops/choice.py, by these measurements:\n{lines}")
    print("\nAll checks held." if work.held() else "\nNot all checks held, or not all were made.", flush=True)
    return 0 if work.held() else 1
