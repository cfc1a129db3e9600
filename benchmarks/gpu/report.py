"""The page of a card: checks, tables, what they say of the form to run, what was not done and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.common import cell

from .against import TOLERANCE
from .choices import snippet
from .record import Record

COLUMNS = {
    "operators": ("shape", "dtype", "mode", "case", "ratio", "to_floor", "median_ms", "quartiles_ms", "host_ms",
                  "peak_MiB", "first_call_s"),
    "float32": ("shape", "dtype", "mode", "case", "ratio", "to_floor", "median_ms", "quartiles_ms", "host_ms",
                "peak_MiB", "first_call_s"),
    "models": ("shape", "depth", "dtype", "backend", "mode", "method", "case", "ratio", "median_ms", "quartiles_ms",
               "peak_MiB", "first_call_s"),
    "onnxruntime": ("shape", "window", "form", "case", "ratio", "median_ms", "quartiles_ms"),
    "tune": ("operator", "direction", "dtype", "best", "share", "present_ms"),
}  # fmt: skip
TITLES = {
    "operators": "Operators", "float32": "Operators in float32", "models": "Whole models",
    "onnxruntime": "ONNX Runtime", "tune": "Launch parameters",
}  # fmt: skip
HEADS = {
    "operators": "`ratio` is to plain torch compiled by Inductor (of a whole site: to add and norm), `to_floor` to the"
    " time of moving the bytes that must be moved, at the copy bandwidth measured in the same rounds. Times are the"
    " card's, by events, out of cache; `host_ms` is what the host takes to launch a call, and is what a small one"
    " costs. `training` is the forward pass and the gradients of every input.",
    "models": "`ratio` is to the model before the rewrite, the two in turns. `train` is forward, loss and backward;"
    " `forward` a short call without gradients. `blocks`: equal blocks share one compiled function; `graphs`: the"
    ' same with CUDA graphs (`mode="reduce-overhead"`).',
    "onnxruntime": "`ratio` is to the plain nodes (of whole models: to the model itself); float32, wall time of a run"
    " whose tensors stay on the device.",
    "tune": "The best of a few launch parameters, and its time as a share of the present ones'.",
}


def page(facts: Mapping[str, Any], command: str, records: Mapping[str, Record]) -> str:
    """Markdown of all there is."""
    lines = [f"# GPU: {facts['card']}", "", f"    {command}", "", "; ".join(f"{k} {v}" for k, v in facts.items()) + "."]
    lines += ["", "## Checks", "", *_checks({n: r for n, r in records.items() if n.startswith("check/")})]
    for kind, title in TITLES.items():
        mine = {n: r for n, r in records.items() if n.partition("/")[0] == kind}
        rows = [row for r in mine.values() for row in rows_of(r)]
        broken = [f"- {n}: {text}" for n, r in mine.items() for text in r.failures()]
        if rows or broken:
            lines += ["", f"## {title}", "", HEADS.get(kind, ""), *_tables(rows, COLUMNS[kind]), "", *broken]
        if kind == "float32" and (found := snippet(measured(records), facts)):
            lines += ["", "## Which form to run", "", "Lines for `TABLE` of `src/resfx/ops/choice.py`, as these"
                      " measurements would have them:", "", "```python", found, "```"]  # fmt: skip
    missing = [f"- {name}: {r.note or ('not all of it' if r.rows else 'not begun')}"
               for name, r in records.items() if not r.done or r.note]  # fmt: skip
    if missing:
        lines += ["", "## Not measured", "", *missing]
    return "\n".join(lines) + "\n"


def rows_of(record: Record) -> list[dict[str, Any]]:
    """The rows of tables in a part."""
    return [row for made in record.rows.values() for row in made.get("rows", ())]


def measured(records: Mapping[str, Record]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the operators' tables, by operator."""
    found = {n.partition("/")[2]: rows_of(r) for n, r in records.items() if n.startswith("operators/")}
    return {name: [r for r in rows if "size" in r] for name, rows in found.items()}


def _checks(records: Mapping[str, Record]) -> Iterable[str]:
    allowed = ", ".join(f"{value:g} in {str(dtype)[6:]}" for dtype, value in TOLERANCE.items())
    yield (
        "Each kernel's result and gradients against float64: cases that hold, and the largest error as a share of what"
        f" is allowed ({allowed}, of the largest element and of each; twice that of the largest for gradients)."
    )
    yield from ("", "| operator | float32 | bfloat16 | float16 |", "|---|---|---|---|")
    for name, record in records.items():
        cells = []
        for dtype in ("float32", "bfloat16", "float16"):
            rows = [r for key, r in record.rows.items() if key.startswith(f"{dtype}:")]
            held = [r for r in rows if not r.get("failed")]
            worst = max((r["worst"] for r in held), default=0.0)
            cells.append(f"{len(held)} of {len(rows)}, {worst:.2g}" if rows else "")
        yield f"| {name.partition('/')[2]}{'' if record.done else ' (not all)'} | {' | '.join(cells)} |"
    failed = [f"- {name.partition('/')[2]}, {text}" for name, r in records.items() for text in r.failures()]
    yield from ("", *(failed or ["No check failed."]))


def _tables(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    for title in dict.fromkeys(r.get("group") for r in rows):
        mine = [r for r in rows if r.get("group") == title]
        shown = [c for c in columns if any(r.get(c) is not None for r in mine)] or list(columns[:1])
        if any("failed" in r for r in mine) and "median_ms" not in shown:
            shown.append("median_ms")
        lines += [
            "",
            *([f"### {title}", ""] if title else []),
            "| " + " | ".join(shown) + " |",
            "|" + "---|" * len(shown),
        ]
        lines += ["| " + " | ".join(cell(r, c).replace("|", "\\|") for c in shown) + " |" for r in mine]
    return lines
