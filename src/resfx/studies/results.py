"""What a study came to: rows with means over seeds, their paired difference to the plain model, files."""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from resfx.report.text import table

from .run import CONTROLS, PLAIN, Bench, Run, control_label, seconds_per_step

# The 0.975 quantile of Student's t for 1, 2, ... degrees of freedom.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Difference:
    """Of one row to another over the seeds that both have.

    Attributes:
        mean: of the differences; below zero the row is better.
        half: half the width of the 95 % interval by Student's t; infinite for one seed.
        seeds: how many.
    """

    mean: float
    half: float
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        interval = f" \N{PLUS-MINUS SIGN} {self.half:.4f}" if math.isfinite(self.half) else ""
        return f"{self.mean:+.4f}{interval}"


def paired(losses: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """The difference of two rows, given as losses by seed; ``None`` where they share no seed."""
    found = [losses[seed] - others[seed] for seed in sorted(losses.keys() & others.keys())]
    if not found:
        return None
    half = math.inf
    if len(found) > 1:
        half = T[min(len(found) - 1, len(T)) - 1] * statistics.stdev(found) / math.sqrt(len(found))
    return Difference(statistics.mean(found), half, len(found))


@dataclass(frozen=True, eq=False)
class Row:
    """All seeds of one label in one setting.

    Attributes:
        results: of its runs, by seed.
        plain: those of the plain model in this setting.
    """

    label: str
    setting: str
    results: dict[int, dict[str, Any]]
    plain: dict[int, dict[str, Any]]

    @property
    def losses(self) -> dict[int, float]:
        """Held-out losses by seed, in nats per token."""
        return {seed: result["loss"] for seed, result in self.results.items()}

    @property
    def any(self) -> dict[str, Any]:
        """The result of the first seed: what all seeds have in common is in it."""
        return self.results[min(self.results)]

    @property
    def mean(self) -> float:
        """Of the losses."""
        return statistics.mean(self.losses.values())

    @property
    def error(self) -> float | None:
        """Standard error of the mean over seeds; ``None`` for one."""
        found = list(self.losses.values())
        return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None

    @property
    def difference(self) -> Difference | None:
        """To the plain model, seed by seed; ``None`` for itself."""
        if self.label == PLAIN:
            return None
        return paired(self.losses, {seed: result["loss"] for seed, result in self.plain.items()})

    @property
    def cost(self) -> float | None:
        """Time of a step over that of the plain model, the median over the seeds that both have."""
        shared = self.results.keys() & self.plain.keys()
        ratios = [seconds_per_step(self.results[s]) / seconds_per_step(self.plain[s]) for s in shared]
        return statistics.median(ratios) if ratios else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, one line of the CSV."""
        difference = self.difference
        return {
            "setting": self.setting, "label": self.label, "seeds": len(self.results), "loss": self.mean,
            "standard_error": self.error, "difference": difference and difference.mean,
            "half_interval": difference.half if difference and math.isfinite(difference.half) else None,
            "parameters": self.any["parameters"], "new_parameters": self.any["new_parameters"],
            "rate": self.any["recipe"]["rate"], "steps": self.any["recipe"]["steps"], "cost": self.cost,
        }  # fmt: skip


def rows_of(runs: Iterable[dict[str, Any]], setting: str) -> list[Row]:
    """The rows of a setting, from what each run came to as plain data; in the order of the runs."""
    by_label: dict[str, dict[int, dict[str, Any]]] = {}
    for result in runs:
        if result["setting"] == setting:
            by_label.setdefault(result["label"], {})[result["seed"]] = result
    return [Row(name, setting, found, by_label.get(PLAIN, {})) for name, found in by_label.items()]


class Results:
    """The finished runs of a study; ``print`` shows the table.

    Attributes:
        done: the runs themselves, and in ``runs`` what each came to, as plain data.
        planned: how many there are to be.
        bench: what all have in common.
        facts: what else to know, as plain data.
    """

    def __init__(
        self, finished: Iterable[tuple[Run, dict[str, Any]]], planned: int, bench: Bench, facts: dict[str, Any]
    ) -> None:
        self.done: list[Run] = []
        self.runs: list[dict[str, Any]] = []
        for run, result in finished:
            self.done.append(run)
            self.runs.append(result)
        self.planned, self.bench, self.facts = planned, bench, facts

    def rows(self, setting: str) -> list[Row]:
        """The rows of a setting in the order of the runs, the plain model first."""
        return rows_of(self.runs, setting)

    @property
    def settings(self) -> list[str]:
        """The settings that have finished runs."""
        return list(dict.fromkeys(result["setting"] for result in self.runs))

    def controlled(self, setting: str) -> list[tuple[str, str, Difference]]:
        """Rows that have a plain model of their size or time: the row, that control, and the difference to it."""
        rows = {row.label: row for row in self.rows(setting)}
        found = []
        for label, row in rows.items():
            for control in (control_label(kind, label) for kind in CONTROLS):
                difference = paired(row.losses, rows[control].losses) if control in rows else None
                if difference is not None:
                    found.append((label, control, difference))
        return found

    def table(self, setting: str, markdown: bool = False) -> str:
        """A setting's rows as text."""
        header = ("", "seeds", "held-out loss", "difference to plain", "parameters", "added", "rate", "time a step")
        lines = [_cells(row) for row in self.rows(setting)]
        if markdown:
            rule = ["---"] + ["---:"] * (len(header) - 1)
            return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))
        return table(lines, header, align="<>>>>>>>")

    def to_dict(self) -> dict[str, Any]:
        """Every run with its curve, as plain data."""
        shared = ("base", "size", "text", "host")  # told once
        runs = [{name: value for name, value in result.items() if name not in shared} for result in self.runs]
        return {"planned": self.planned, **self.facts, "runs": runs}

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """:meth:`to_dict` as a file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """A line for each row."""
        lines = [row.to_dict() for setting in self.settings for row in self.rows(setting)]
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]) if lines else ["setting"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)

    def __str__(self) -> str:
        done = f"{len(self.runs)} of {self.planned} runs are done"
        return "\n\n".join([done, *(f"{setting}\n{self.table(setting)}" for setting in self.settings)])

    def __repr__(self) -> str:  # what a notebook shows
        return str(self)


def _cells(row: Row) -> list[str]:
    error = f" ({row.error:.4f})" if row.error is not None else ""
    return [
        row.label, str(len(row.results)), f"{row.mean:.4f}{error}", str(row.difference or ""),
        f"{row.any['parameters']:,}", f"{row.any['new_parameters']:,}", f"{row.any['recipe']['rate']:g}",
        f"x {row.cost:.2f}" if row.cost is not None else "",
    ]  # fmt: skip
