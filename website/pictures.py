"""The pictures of the pages: ``python -m website.pictures`` makes them of models and of the committed tables."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import resfx
from resfx.report.drawing import EDGE, INK, KINDS, LINE, MARK, PAD, Drawing
from resfx.report.picture import picture
from website.pages import ROOT, run

PICTURES = ROOT / "docs" / "pictures"
SCOPES = {"site": "ddl", "depth": "attnres", "wide": "mhc", "sequence": "short_swa", "route": "value_residual"}


def main() -> None:
    """Draw all of them."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=12, n_head=4, use_cache=False)).eval()
    ids = torch.randint(0, 50257, (2, 16))
    before = resfx.scan(model, args=(ids,))
    after = {scope: resfx.rewrite(model, method, args=(ids,)).report for scope, method in SCOPES.items()}
    PICTURES.mkdir(exist_ok=True)
    for scope, report in after.items():
        report.draw(PICTURES / f"{scope}.svg")
    both = resfx.rewrite(model, ["attnres", "ddl"], args=(ids,)).report
    write("before_after", side_by_side([picture(before), picture(both)]))
    walked: dict[str, Any] = {}
    run(ROOT / "docs" / "how.md", walked)
    write("walked", side_by_side([picture(walked["report"]), picture(walked["new"].report)]))
    write("duality", duality())
    write("cost", costs())


def write(name: str, svg: str) -> None:
    """Write one picture."""
    (PICTURES / f"{name}.svg").write_text(svg, encoding="utf-8")


def side_by_side(drawings: list[Drawing]) -> str:
    """Several pictures as one, from left to right."""
    whole, x = Drawing(), 0.0
    for drawing in drawings:
        inner = re.sub(r"<style>.*?</style>\n", "", drawing.svg())
        whole.parts.append(inner.replace("<svg ", f'<svg x="{x:g}" ', 1))
        x += drawing.width + 2 * PAD
        whole.reach(x - PAD, drawing.height)
    return whole.svg()


CELL, COLUMNS, ROWS = 26, 9, 7


def duality() -> str:
    """One operator, two axes: states by layer and position, and what one of them reads over either."""
    out = Drawing()
    for left, title, hint, reads in (
        (PAD, "a read over depth", "what earlier layers wrote at this position", [(r, 6) for r in range(4)]),
        (
            PAD + 320,
            "a window over positions",
            "what this layer sees at earlier positions",
            [(4, c) for c in range(3, 6)],
        ),
    ):
        out.text(left, 24, (title, "head"))
        out.text(left, 42, (hint, "hint"))
        _grid(out, left, 76, reads, query=(4, 6))
    out.text(
        PAD,
        76 + CELL * ROWS + 42,
        ("the same operator: softmax over a causal window, on the transposed tensor", "plain"),
    )
    return out.svg()


def _grid(out: Drawing, left: float, top: float, reads: list[tuple[int, int]], query: tuple[int, int]) -> None:
    """Layers upwards, positions to the right; arrows from what is read to what reads."""
    centre = lambda cell: (left + 20 + CELL * (cell[1] + 0.5), top + CELL * (ROWS - cell[0] - 0.5))
    for row in range(ROWS):
        for column in range(COLUMNS):
            x, y = centre((row, column))
            colour = MARK if (row, column) == query else KINDS["attention"] if (row, column) in reads else EDGE
            out.circle(x, y, 7, colour)
    x, y = centre(query)
    for row, column in reads:
        a, b = centre((row, column))
        bend = f"{a + 26:g} {(b + y) / 2:g}" if column == query[1] else f"{(a + x) / 2:g} {b - 26:g}"
        out.path(f"M{a:g} {b:g} Q{bend} {x:g} {y:g}", KINDS["attention"], 1.6)
    out.circle(x, y, 7, MARK)
    bottom = top + CELL * ROWS
    out.path(f"M{left + 14:g} {bottom:g} V{top:g} l-4 7 m4 -7 l4 7", LINE, 1.5)
    out.path(f"M{left + 14:g} {bottom:g} H{left + 30 + CELL * COLUMNS:g} l-7 -4 m7 4 l-7 4", LINE, 1.5)
    out.text(left + 20 + CELL * COLUMNS, bottom + 16, ("positions", "small"), anchor="end")
    out.text(left, top - 8, ("layers", "small"))


def costs() -> str:
    """Time and memory of a training step of each method against the plain model's, from the committed table."""
    rows = ratios(json.loads((ROOT / "benchmarks" / "results" / "data" / "models-12.json").read_text()))
    out, bar, zero = Drawing(), 420.0, 260.0
    out.text(PAD, 26, ("A training step of a 12-layer decoder, width 768, compiled by block", "head"))
    out.text(PAD, 44, ("as a multiple of the plain model's; CPU", "hint"))
    most = max(max(pair) for pair in rows.values())
    for i, (method, (time, memory)) in enumerate(sorted(rows.items(), key=lambda item: item[1])):
        y = 62 + 40 * i
        out.text(PAD, y + 19, (method, "plain"))
        for value, colour, at in ((time, KINDS["attention"], y), (memory, KINDS["other"], y + 15)):
            out.box(zero, at + 2, bar * value / most, 12, colour, radius=2)
            out.text(zero + bar * value / most + 6, at + 12, (f"{value:.2f}", "small"))
    bottom = 62 + 40 * len(rows)
    one = zero + bar / most
    out.path(f"M{one:g} 54 V{bottom:g}", INK, 1, "3 3")
    x = zero
    for name, kind in (("time", "attention"), ("memory", "other")):
        out.circle(x + 6, bottom + 12, 6, KINDS[kind])
        x = out.text(x + 17, bottom + 16, (name, "plain")) + 18
    return out.svg()


def ratios(data: Any) -> dict[str, tuple[float, float]]:
    """Time and peak memory, after over before, by method."""
    found = {}
    for row in data["rows"]:
        if row["case"] == "after":
            (plain,) = (r for r in data["rows"] if r["group"] == row["group"] and r["case"] == "before")
            found[row["group"]] = (row["ratio"], row["peak_MiB"] / plain["peak_MiB"])
    return found


if __name__ == "__main__":
    main()
