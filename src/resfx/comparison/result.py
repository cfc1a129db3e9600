"""What a comparison found: figures per backend and mode, as objects, text, JSON or a picture."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from resfx.report.text import table
from resfx.runtime.saved.folder import refuse_unwritable

from .measure import differ, quartiles


@dataclass(frozen=True)
class Measured:
    """One model in one row.

    Attributes:
        samples: seconds of each step, in the order they were taken.
        first: seconds of the first step: capture, compilation, export.
        memory: bytes allocated at the step's highest point, without parameters; ``None`` where nothing counts them.
        nodes: operators dispatched by a step (eager), nodes of the compiled forward graphs, or nodes of the ONNX graph.
    """

    samples: list[float]
    first: float
    memory: int | None = None
    nodes: int | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return quartiles(self.samples)[1]


@dataclass(frozen=True)
class Row:
    """Both models on one backend in one mode; ``reason`` says why there are no figures."""

    backend: str
    mode: str
    before: Measured | None = None
    after: Measured | None = None
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """Latency after over before; above 1 is slower."""
        return self.after.median / self.before.median if self.before and self.after else None

    @property
    def differs(self) -> bool:
        """Whether the medians differ by more than the spread; if not, ``ratio`` says nothing."""
        return bool(self.before and self.after and differ(self.before.samples, self.after.samples))


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`resfx.compare`. ``print`` it, or take its ``rows``.

    Attributes:
        rows: one for each backend and mode.
        names: what the two models are.
        parameters: how many each has.
        tokens: tokens per call, or ``None`` where inputs are not batch x sequence.
        setting: device, threads, versions, inputs, how the clock was used.
    """

    names: tuple[str, str]
    parameters: tuple[int, int]
    tokens: int | None
    rows: list[Row] = field(default_factory=list)
    setting: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: JSON-ready, samples included."""
        rows = [{**asdict(r), "ratio": r.ratio, "differs": r.differs} for r in self.rows]
        return {"version": 1, "names": list(self.names), "parameters": list(self.parameters), "tokens": self.tokens,
                "setting": dict(self.setting), "rows": rows}  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Comparison:
        """The comparison that :meth:`to_dict` described."""
        if data.get("version") != 1:
            raise ValueError(f"unknown version {data.get('version')!r} of a comparison; this library reads 1")
        rows = [
            Row(r["backend"], r["mode"], _measured(r["before"]), _measured(r["after"]), r["reason"])
            for r in data["rows"]
        ]
        names, parameters = data["names"], data["parameters"]
        return cls((names[0], names[1]), (parameters[0], parameters[1]), data["tokens"], rows, data["setting"])

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` to a file.

        Raises:
            OptionError: if it cannot be written.
        """
        refuse_unwritable(path)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)
            file.write("\n")

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw latency and memory as bars; the suffix of ``path`` picks the format.

        Raises:
            OptionError: if it cannot be written.
            MissingPackageError: without matplotlib.
        """
        refuse_unwritable(path)
        from .plot import plot_comparison

        plot_comparison(self, path)

    def __str__(self) -> str:
        return comparison_text(self)


def _measured(data: dict[str, Any] | None) -> Measured | None:
    return Measured(**data) if data else None


def verdict(row: Row) -> str:
    """The ratio of a row, marked where it says nothing."""
    if row.ratio is None:
        return ""
    return f"{row.ratio:.2f}" if row.differs else f"{row.ratio:.2f} (within noise)"


def comparison_text(result: Comparison) -> str:
    """A heading, two lines for each row, and why the other rows have no figures."""
    setting, (old, new) = result.setting, result.parameters
    place = f"{setting['device']}, {setting['threads']} threads, torch {setting['torch']}"
    text = (
        f"{result.names[0]} -> {result.names[1]}\n"
        f"{', '.join(setting['inputs'])} on {place}\n"
        f"parameters {old:,} -> {new:,}" + (f" ({(new - old) / old:+.3%})" if old else "")
    )
    measured = [r for r in result.rows if r.before and r.after]
    if measured:
        header = ("backend", "mode", "model", "median ms", "quartiles ms", "tokens/s", "peak MiB", "nodes",
                  "first step s", "ratio", "")  # fmt: skip
        rows = [line for row in measured for line in _lines(row, result.tokens)]
        rounds = min(len(r.after.samples) for r in measured if r.after)
        text += f"\n\n{table(rows, header, '<<<>>>>>>>')}\n\n"
        text += (
            f"ratio: after / before, of medians over {rounds} rounds or more, the two models in turns.\n"
            f"nodes: operators run (eager), of the graph (others). peak: {setting['memory']}, parameters not counted.\n"
            "first step: with capture, compilation or export. threads are torch's; ONNX Runtime has its own."
        )
    reasons = [(r.backend, r.mode, r.reason) for r in result.rows if r.reason]
    return text + (f"\n\nnot measured\n{table(reasons, indent=2)}" if reasons else "")


def _lines(row: Row, tokens: int | None) -> list[tuple[Any, ...]]:
    assert row.before and row.after
    lines = []
    for name, m in (("before", row.before), ("after", row.after)):
        label = (row.backend, row.mode) if m is row.before else ("", "")
        end: tuple[str, ...] = ()
        if m is row.after:
            end = (f"{row.ratio:.2f}", ", ".join(filter(None, ("" if row.differs else "within noise", m.note))))
        low, middle, high = quartiles(m.samples)
        rate = f"{tokens / middle:,.0f}" if tokens else None
        memory = f"{m.memory / 2**20:,.1f}" if m.memory is not None else "-"
        lines.append((*label, name, _figure(middle), f"{_figure(low)} - {_figure(high)}", rate, memory, m.nodes,
                      f"{m.first:.2f}", *end))  # fmt: skip
    return lines


def _figure(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds < 0.1 else f"{seconds * 1e3:,.1f}"
