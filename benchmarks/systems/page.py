"""``docs/systems.md`` from the figures in ``docs/systems``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import scale
from .carried import FORMULAS
from .drawing import crossing, measured_beside_simulated

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "systems"
TEXT = """# Pipelines: what crosses between stages

Made by `make systems`, the measured part by `python -m benchmarks.systems measured{REALTIME}`.
A model is cut between blocks by `resfx.split`; what crosses is what the stages behind read. A
block has two sublayers; there are 4 channels `n` (of `altup` 2), the window `K` of `depth_read` is 4, and keys and
values are each half as wide as the stream, `r = 1/2`. `attnres, blocks`, its two phases and `attnres, normalized` have
`block=2`.

Where a process holds several stages (interleaved schedules), `resfx.split(..., ranks=n)` has it keep what one of its
stages received or made for its later ones, so that only what it lacks crosses: the cross-stage caching of Attention
Residuals ([2603.15031](https://arxiv.org/abs/2603.15031)), here for every method. A value is then sent to each of the
other processes at most once, and the gradients that the stages of a process have for it go back as one.

![Vectors that cross each border, sent anew at every border and with what processes keep](systems/crossing.svg)

## Counted

A Llama of 8 blocks, width 32, float32. Vectors of the stream's width behind `l` blocks: by formula, and as
`resfx.split` reports them at every border, with a process for every stage and with two that take turns and keep what
they have. Then the kilobytes of a training step, 8 rows of 8 tokens in 4 micro-batches, between two processes over
gloo: 1F1B with a stage each, and interleaved 1F1B with two each. {COUNTED_SAID}

{COUNTED}

The shortcut (`ddl`) and mixers over positions (`short_swa`, `canon`) add nothing, as Residual Stream Duality argues;
channels cost their number; a read over all sublayers grows with depth, one over finished blocks of eight sublayers an
eighth as fast. With what processes keep, nothing grows: a border costs what the other processes' stages have added
since.

## Equal to one process

A Llama of 8 blocks, width 32, off the methods' starts: a step of 4 micro-batches in 2 and 4 processes over gloo, by
GPipe and 1F1B with a stage each and by interleaved 1F1B with two each, against the same step in one process. The
largest relative difference of a loss, and of an entry of any parameter's gradient, relative to the largest entry of
that gradient; `0`: equal bit for bit. What processes keep adds gradients up in another order; where that is more than
1e-6, a row at the end is the same in float64.
{EQUAL_SAID}

{EQUAL}

## Measured

The step of a rewritten pipeline over that of the plain one, in processes on one machine, over gloo: a Llama of 8
blocks, width 128, 8 micro-batches of 128 tokens. Simulated from the processor time that each stage takes for a
micro-batch in one process alone (medians), the formula of what crosses, and gloo's bandwidth ({BANDWIDTH:.1f} GB/s) and
latency ({LATENCY:.0f} us) between two processes; {CORES} processes compute at a time, more of them share the {CORES}
cores evenly. Left out: the processor time of sending, and of the schedule itself. Measured: the median of {ROUNDS}
steps of each in turns, with quartiles, {BESIDE} the machine's other work. {MEASURED_SAID}

{MEASURED}

![Measured beside simulated steps](systems/measured.svg)

## Simulated

1F1B with {LAYERS} blocks of width {WIDTH}, {MICRO} micro-batches of {TOKENS} tokens, bfloat16, devices of {TERA:g}
TFLOP/s; a backward pass takes twice a forward pass, transfers run beside the computation. Step time over that of the
plain model's pipeline, without the method's own arithmetic; and what the stage that holds most keeps of what it
received for backward passes to come. What carries as much shares a row: {ALIKE}.

{SIMULATED}

The same with {EACH} stages a process, interleaved: sent anew at every border, and with what processes keep (`kept`).

{INTERLEAVED}
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def counted(rows: dict[str, Any]) -> tuple[str, str]:
    """The table, and whether everything is as the formula says."""
    shown, unlike = [], []
    for name, row in rows.items():
        cells = [name, FORMULAS[name].formula]
        for key in ("vectors", "vectors, kept"):
            found, expected = row[key]
            cells.append(", ".join(f"{v:g}" for v in found))
            unlike += [f"{name} ({key})"] * (found != expected)
        for key in ("bytes", "bytes, interleaved", "bytes, kept"):
            (forward, back), expected = row[key]
            cells.append(f"{forward / 1024:g}" if forward == back else f"{forward / 1024:g}, {back / 1024:g} back")
            unlike += [f"{name} ({key})"] * (not forward == back == expected)
        shown.append(cells)
    said = ("Every count is what the formula says, and as much goes back." if not unlike
            else f"**Unlike the formula:** {'; '.join(unlike)}.")  # fmt: skip
    head = ["method", "d-vectors behind l blocks", "l = 1 ... 7", "kept by two processes", "kB forward",
            "interleaved", "interleaved, kept"]  # fmt: skip
    return table(head, shown), said


def equal(rows: dict[str, Any]) -> tuple[str, str]:
    """The table, and the largest differences."""
    setups = list(next(iter(rows.values())))
    shown, worst = [], {double: {"loss": 0.0, "gradient": 0.0} for double in (False, True)}
    failed = [f"{name} ({row['failed']})" for name, row in rows.items() if "failed" in row]
    for name, row in rows.items():
        if "failed" not in row:
            seen = worst["float64" in name]
            seen |= {what: max(seen[what], *(row[setup][what] for setup in setups)) for what in seen}
            shown.append([name, *(_difference(row[setup]) for setup in setups)])
    once = sum("float64" not in cells[0] and cells[0] != "(plain)" for cells in shown)
    plain, double = worst[False], worst[True]
    said = (f"Of {once} methods and forms and the plain model the largest: {plain['loss']:.1g} of a loss,"
            f" {plain['gradient']:.1g} of a gradient; of the rows in float64, {double['gradient']:.1g}.")  # fmt: skip
    if failed:
        said += f" **Not run:** {'; '.join(failed)}."
    return table(["method", *setups], shown), said


def _difference(found: dict[str, float]) -> str:
    return "0" if not any(found.values()) else f"{max(found.values()):.0e}".replace("e-0", "e-")


def measured(rows: dict[str, Any]) -> tuple[str, str]:
    """The table, and how far the simulation is off."""
    rows = {name: row for name, row in rows.items() if name != "(plain)"}
    setups = list(next(iter(rows.values())))
    off = {(name, s): row[s]["simulated"] / row[s]["measured"] - 1 for name, row in rows.items() for s in setups}
    shown = [[name, *(_pair(row[setup]) for setup in setups)] for name, row in rows.items()]
    far = [f"{name}, {setup} ({value:+.0%})" for (name, setup), value in off.items() if abs(value) > 0.15]
    said = f"Within 15 %: {sum(abs(v) <= 0.15 for v in off.values())} of {len(off)}." + (
        f" Not: {'; '.join(far)}." if far else ""
    )
    return table(["method", *(f"{setup}: measured, simulated" for setup in setups)], shown), said


def _pair(found: dict[str, Any]) -> str:
    low, high = found["quartiles"]
    return f"{found['measured']:.2f} ({low:.2f} to {high:.2f}), {found['simulated']:.2f}"


def simulated() -> str:
    """1F1B with a stage a process: step time over the plain pipeline's, and gigabytes held."""
    counts = (8, 32, 128)
    head = ["method", *(f"{n} stages, {link.name}" for n in counts for link in scale.LINKS),
            *(f"GB held, {n} stages" for n in counts)]  # fmt: skip
    return table(head, (
        [name, *(f"{scale.ratio(name, n, link):.2f}" for n in counts for link in scale.LINKS),
         *(f"{scale.held(name, n):.1f}" for n in counts)] for name in _alike()
    ))  # fmt: skip


def interleaved() -> str:
    """Several stages a process, without and with what it keeps."""
    counts = (8, 32)
    ways = [(n, link, keeps) for n in counts for link in scale.LINKS for keeps in (False, True)]
    head = ["method", *(f"{n} processes, {link.name}{', kept' if keeps else ''}" for n, link, keeps in ways)]
    return table(head, ([name, *(f"{scale.ratio(name, n, link, scale.EACH, keeps):.2f}" for n, link, keeps in ways)]
                        for name in _alike() if name != "(plain)"))  # fmt: skip


def _alike() -> dict[str, list[str]]:
    """By one method: those that carry as much in the simulated model, whatever a process keeps."""
    found: dict[Any, list[str]] = {}
    for name, carried in FORMULAS.items():
        ways = (carried.crossing(scale.LAYERS, scale.LAYERS, ranks) for ranks in (None, 8))
        found.setdefault(tuple(map(tuple, ways)), []).append(name)
    return {names[0]: names for names in found.values()}


def _shared() -> str:
    """Which methods share a row."""
    return "; ".join(
        f"with `{first}`, {', '.join(f'`{name}`' for name in names[1:])}"
        for first, names in _alike().items()
        if names[1:]
    )


def page() -> None:
    """Write the page and its pictures."""
    data = {part: json.loads((DATA / f"{part}.json").read_text()) for part in ("counted", "equal", "measured")}
    made: dict[str, Any] = {"SIMULATED": simulated(), "INTERLEAVED": interleaved(), "EACH": scale.EACH,
            "ALIKE": _shared(), "LAYERS": scale.LAYERS, "WIDTH": scale.WIDTH, "MICRO": scale.MICRO,
            "TOKENS": scale.TOKENS, "TERA": scale.FLOPS / 1e12}  # fmt: skip
    here = data["measured"]
    made["COUNTED"], made["COUNTED_SAID"] = counted(data["counted"])
    made["EQUAL"], made["EQUAL_SAID"] = equal(data["equal"])
    made["MEASURED"], made["MEASURED_SAID"] = measured(here["rows"])
    made |= {"BANDWIDTH": here["bandwidth"] / 1e9, "LATENCY": here["latency"] * 1e6, "CORES": here["cores"],
             "ROUNDS": here["rounds"], "REALTIME": " --realtime" if here["realtime"] else "",
             "BESIDE": "before (`SCHED_RR`)" if here["realtime"] else "beside"}  # fmt: skip
    (DOCS / "systems.md").write_text(TEXT.format(**made))
    (DATA / "crossing.svg").write_text(crossing())
    (DATA / "measured.svg").write_text(measured_beside_simulated(here["rows"]))
