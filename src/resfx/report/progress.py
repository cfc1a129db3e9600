"""What the library tells while it works: which step it is at, where there is a terminal, and the log of ``"resfx"``.

``RESFX_PROGRESS=0`` keeps the terminal still; so does a standard error that is none. Every step is in the log, at
``DEBUG`` when it begins and at ``INFO`` with its seconds when it is done.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("resfx")
PATIENCE = 1.0  # seconds that a step takes before it is worth a line
_PACKAGE = str(Path(__file__).parents[1])


def step(text: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: the calls of a function are steps named ``text``, which may use its arguments: ``{self.name}``."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def stepping(*args: P.args, **kwargs: P.kwargs) -> R:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            with stage(text.format(**call.arguments)):
                return function(*args, **kwargs)

        return stepping

    return decorate


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Show and log one step while the block runs; steps may hold others, of which the innermost is shown."""
    log.debug("%s ...", text)
    start = time.perf_counter()
    with _line.showing(text):
        yield
    log.info("%s: %s", text, duration(time.perf_counter() - start))


def wanted() -> bool:
    """Whether steps are to be shown: not switched off, and standard error is a terminal."""
    return os.environ.get("RESFX_PROGRESS", "1") != "0" and sys.stderr is not None and sys.stderr.isatty()


class _Line:
    """One line at the foot of the terminal, written by ``tqdm`` from a thread of its own, so that its clock runs."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    @contextmanager
    def showing(self, text: str) -> Iterator[None]:
        mine = [text]
        with self.lock:
            self.steps.append(mine)
            if len(self.steps) == 1 and wanted():
                self.over = threading.Event()
                self.thread = threading.Thread(target=self._draw, args=(self.over,), name="resfx-progress", daemon=True)
                self.thread.start()
        try:
            yield
        finally:
            with self.lock:
                self.steps = [s for s in self.steps if s is not mine]
                ended = None if self.steps else self.thread
            if ended is not None:
                self.over.set()
                ended.join(1.0)  # what is printed next must not meet the line

    def _draw(self, over: threading.Event) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            return
        if over.wait(PATIENCE):
            return
        with tqdm(bar_format="resfx: {desc} [{elapsed}]", leave=False) as bar:
            while not over.wait(0.2):
                with self.lock:
                    text = self.steps[-1][0] if self.steps else ""
                bar.set_description_str(text)


_line = _Line()


def warn(text: str) -> None:
    """A ``UserWarning`` that points at the line of the user's code which called the library."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def duration(seconds: float) -> str:
    """A time for people: ``740 ms``, ``20.3 s``, ``2 min 5 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60} s"
