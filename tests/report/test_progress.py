"""What the library tells while it works: a line on a terminal, the log, and warnings that point at the user."""

from __future__ import annotations

import builtins
import io
import logging
import sys
import time

import pytest

from resfx.report import progress
from resfx.report.progress import duration, stage, step, wanted


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard error say that it is a terminal, and the library impatient."""

    def connect():
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    monkeypatch.delenv("RESFX_PROGRESS", raising=False)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    return connect


@pytest.fixture
def told():
    """Records of the library's log."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    log, level = logging.getLogger("resfx"), logging.getLogger("resfx").level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield records
    log.removeHandler(handler)
    log.setLevel(level)


def lines(screen) -> list[str]:
    return [part.strip() for part in screen.getvalue().split("\r") if part.strip()]


def test_the_innermost_step_is_shown_and_the_line_cleared(terminal):
    screen = terminal()
    with stage("outside"):
        with stage("inside"):
            time.sleep(0.5)
        time.sleep(0.5)
    shown = lines(screen)
    assert any(s.startswith("resfx: inside [00:0") for s in shown)
    assert shown[-1].startswith("resfx: outside")
    assert screen.getvalue().endswith("\r") and not screen.getvalue().split("\r")[-2].strip()


@pytest.mark.parametrize("how", ["variable", "no terminal", "quick", "no tqdm"])
def test_nothing_is_shown_where_it_is_not_wanted(how, terminal, monkeypatch, told):
    if how == "variable":
        monkeypatch.setenv("RESFX_PROGRESS", "0")
    if how == "no terminal":
        monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    if how == "quick":
        monkeypatch.setattr(progress, "PATIENCE", 60.0)
    if how == "no tqdm":
        real = builtins.__import__

        def fail(name, *args, **kwargs):
            if name == "tqdm":
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", fail)
    screen = terminal()
    assert wanted() == (how in ("quick", "no tqdm"))
    with stage("working"):
        time.sleep(0.3)
    assert screen.getvalue() == ""
    assert [r.levelname for r in told] == ["DEBUG", "INFO"], "the log has it all the same"


def test_the_log_has_every_step_with_its_time(told):
    @step("counting {what} of {self.name}")
    def count(self, what="sheep"):
        return len(what)

    class Farm:
        name = "the farm"

    assert count(Farm()) == 5 and count(Farm(), what="cow") == 3
    assert [r.getMessage().split(":")[0] for r in told if r.levelno == logging.INFO] == [
        "counting sheep of the farm", "counting cow of the farm",
    ]  # fmt: skip


def test_a_step_that_fails_ends_the_line(terminal, told):
    terminal()
    with pytest.raises(ZeroDivisionError), stage("failing"):
        _ = 1 / 0
    assert progress._line.steps == [] and [r.levelname for r in told] == ["DEBUG"]


def test_capture_and_check_are_steps(told):
    import torch
    from torch import nn

    import resfx

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.fc(torch.relu(x))

    resfx.rewrite(Net(), "ddl", args=(torch.randn(2, 4),))
    done = [r.getMessage().split(":")[0] for r in told if r.levelno == logging.INFO]
    assert done == ["capturing a call of Net", "checking Net against the original"]


@pytest.mark.parametrize(("seconds", "text"), [
    (0.00042, "0.42 ms"), (0.74, "740 ms"), (20.28, "20.3 s"), (59.97, "1 min 0 s"), (125.4, "2 min 5 s"),
])  # fmt: skip
def test_times_are_for_people(seconds, text):
    assert duration(seconds) == text
