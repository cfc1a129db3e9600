"""How far a study is: a bar on a terminal, a line for each run to whoever wants one, and a time to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from resfx.report.progress import log, wanted

from .training import Progress


class Bar:
    """Counts optimizer steps over all runs of a study.

    Args:
        end: of ``time.monotonic()``, after which no run is to begin; ``None`` for no end.
        say: gets a line for each finished run.
    """

    def __init__(self, end: float | None, say: Callable[[str], None] | None) -> None:
        self.end, self.listener = end, say
        self.shown: Any = None

    def __enter__(self) -> Self:
        if wanted():
            from tqdm import tqdm

            self.shown = tqdm(total=0, unit="step", desc="resfx study", dynamic_ncols=True, leave=False)
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown is not None:
            self.shown.close()

    @property
    def is_over(self) -> bool:
        """Whether no run is to begin any more."""
        return self.end is not None and time.monotonic() >= self.end

    def expect(self, steps: Iterable[int]) -> None:
        """There are so many steps more to do."""
        if self.shown is not None:
            self.shown.total += sum(steps)
            self.shown.refresh()

    @contextmanager
    def of(self, name: str) -> Iterator[Callable[[Progress], None]]:
        """What a run calls after every step."""
        done = 0

        def told(progress: Progress) -> None:
            nonlocal done
            if self.shown is not None:
                self.shown.set_postfix_str(f"{name}, {progress.points[-1][1]:.3f}", refresh=False)
                self.shown.update(progress.step - done)
            done = progress.step

        yield told

    def say(self, line: str) -> None:
        """A run is finished."""
        log.info("study: %s", line)
        if self.listener is not None:
            with self._away():
                self.listener(line)

    @contextmanager
    def _away(self) -> Iterator[None]:
        """Without the bar, which is drawn again below."""
        if self.shown is None:
            yield
            return
        self.shown.clear()
        yield
        self.shown.refresh()
