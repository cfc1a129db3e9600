"""What a part leaves behind: a file of rows, written after each, so that a run cut short goes on where it was."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MADE_OF = ("src/resfx/ops", "benchmarks/gpu")
LOST = re.compile(r"CUDA error|illegal memory access|device-side assert|misaligned address|unspecified launch failure")
"""Of errors after which a process can launch nothing any more."""


class LostDeviceError(Exception):
    """The process must end and another go on."""


@functools.cache
def source() -> str:
    """Of the kernels and of what measures them: rows of other source are not kept."""
    total = hashlib.sha256()
    for path in sorted(p for folder in MADE_OF for p in (ROOT / folder).rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


class Record:
    """The rows of one part.

    Attributes:
        rows: by key, in the order in which they came; one with ``failed`` has the reason and no figures.
        done: whether nothing is left to do.
        running: the key whose row is being made: what a process was at when it ended.
        note: why there is nothing, or not all.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.path, self.part = folder / f"{part.replace('/', '-')}.json", part
        self.rows: dict[str, dict[str, Any]] = {}
        self.done, self.running, self.note, self.seconds = False, "", "", 0.0

    def load(self, machine: str) -> Record:
        """What is there, if it is of this machine and this source."""
        try:
            held = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return self
        if (held.get("machine"), held.get("source")) == (machine, source()):
            self.rows, self.done, self.running = held["rows"], held["done"], held["running"]
            self.note, self.seconds = held["note"], held["seconds"]
        return self

    def save(self, machine: str) -> None:
        """Write all of it, or leave the file as it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        held = {"part": self.part, "machine": machine, "source": source(), "done": self.done, "running": self.running,
                "note": self.note, "seconds": round(self.seconds, 1), "rows": self.rows}  # fmt: skip
        beside = self.path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(held, indent=1) + "\n")
        beside.replace(self.path)

    def failures(self) -> list[str]:
        """Each row that failed, with its reason."""
        return [f"{key}: {row['failed']}" for key, row in self.rows.items() if row.get("failed")]


class Writer:
    """A record that a part adds to, row by row."""

    def __init__(self, record: Record, machine: str) -> None:
        self.record, self.machine = record, machine

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> None:
        """Make a row, if it is not there; an error is a row too.

        Raises:
            LostDeviceError: after an error that leaves the device unusable to this process.
        """
        if key in self.record.rows:
            return
        self.record.running = key
        self.record.save(self.machine)
        begin = time.perf_counter()
        try:
            row = make()
        except Exception as error:
            row = {"failed": told(error)}
        row["seconds"] = round(time.perf_counter() - begin, 2)
        self.record.rows[key], self.record.running = row, ""
        self.record.save(self.machine)
        if LOST.search(json.dumps(row)):
            raise LostDeviceError(key)


def told(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {' / '.join(lines[:3])[:300]}"
