"""What the operators' tables say of the form to run: lines for ``TABLE`` of :mod:`resfx.ops.choice`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.common import MODES
from resfx.ops.choice import ANY, TABLE, Choice, Form

from .tables import KERNEL, PLAIN

MARGIN = 0.97
"""Plain torch is taken where it needs less than this share of the kernel's time, forward and with gradients."""


def cost(row: Mapping[str, Any]) -> float:
    """Milliseconds that a call keeps device or host busy, whichever is longer: the other runs meanwhile."""
    return max(row["median_ms"], row.get("host_ms", 0.0))


def form(rows: Iterable[Mapping[str, Any]], size: str, dtype: str) -> Form | None:
    """``triton`` or ``torch`` for calls of a size; ``None`` where the two forms were not measured in both modes."""
    shares = []
    for mode in MODES:
        times = {r["case"]: cost(r) for r in rows
                 if (r["size"], r["dtype"], r["mode"]) == (size, dtype, mode) and "failed" not in r}  # fmt: skip
        if not {KERNEL, PLAIN} <= set(times):
            return None
        shares.append(times[PLAIN] / times[KERNEL])
    return "torch" if all(share < MARGIN for share in shares) else "triton"


def _line(family: str, choice: Choice) -> str:
    forms = f'"{choice.small}", "{choice.large}", "{choice.note}"'
    return "ANY: Choice()" if (family, choice) == (ANY, Choice()) else f'"{family}": Choice({forms})'


def snippet(measured: Mapping[str, list[dict[str, Any]]], facts: Mapping[str, Any]) -> str:
    """Lines to paste in the place of the operators', each measured in both sizes; those of other cards stay.

    Args:
        measured: rows of the operators' tables, by operator.
    """
    lines = []
    for operator, rows in sorted(measured.items()):
        for dtype in dict.fromkeys(r["dtype"] for r in rows):
            small, large = form(rows, "small", dtype), form(rows, "large", dtype)
            if small and large:
                note = f"{facts['card']}, {dtype}, torch {facts['torch']}, triton {facts['triton']}"
                held = TABLE[operator] | {facts["family"]: Choice(small, large, note)}
                lines += [f'    "{operator}": {{', *(f"        {_line(*line)}," for line in held.items()), "    },"]
                break
    return "\n".join(lines)
