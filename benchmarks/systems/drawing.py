"""The pictures of ``docs/systems.md``."""

from __future__ import annotations

from typing import Any

from resfx.report.drawing import EDGE, GREY, INK, KINDS, LINE, MARK, PAD, Drawing

from .carried import FORMULAS

SHOWN = {"attnres": MARK, "denseformer": KINDS["mlp"], "attnres, blocks of 8": KINDS["mixer"],
         "mhc": KINDS["attention"], "depth_read": KINDS["conv"], "ddl": INK}  # fmt: skip
"""A method of every kind, and its colour."""
LAYERS, RANKS, WIDTH, HEIGHT = 32, 4, 300, 200


def crossing() -> str:
    """Vectors at every border of a model of 32 blocks, a block a stage: sent anew, and kept by 4 processes."""
    out = Drawing()
    out.text(PAD, 26, (f"What crosses behind each of {LAYERS} blocks, in vectors of the stream's width", "head"))
    for left, title, ranks in (
        (PAD + 34, "sent anew at every border", None),
        (PAD + WIDTH + 110, f"kept by {RANKS} processes that take blocks in turns", RANKS),
    ):
        out.text(left, 50, (title, "hint"))
        _curves(out, left, 64, ranks)
    x = PAD + 34.0
    for name, colour in SHOWN.items():
        out.circle(x + 5, HEIGHT + 110, 5, colour)
        x = out.text(x + 15, HEIGHT + 114, (name, "plain")) + 12
    return out.svg()


def _curves(out: Drawing, left: float, top: float, ranks: int | None) -> None:
    most, bottom = 2 * LAYERS, top + HEIGHT
    place = lambda i, v: (left + WIDTH * i / LAYERS, bottom - HEIGHT * v / most)
    for value in range(0, most + 1, 16):
        _, y = place(0, value)
        out.path(f"M{left:g} {y:g} H{left + WIDTH:g}", EDGE, 1)
        out.text(left - 6, y + 4, (str(value), "small"), anchor="end")
    for name, colour in SHOWN.items():
        values = FORMULAS[name].crossing(LAYERS, LAYERS, ranks)
        points = " L".join("{:.4g} {:.4g}".format(*place(i, v)) for i, v in enumerate(values, 1))
        out.path(f"M{points}", colour, 2)
    out.text(left + WIDTH, bottom + 18, ("blocks done", "small"), anchor="end")
    out.reach(left + WIDTH + 10, bottom + 20)


def measured_beside_simulated(rows: dict[str, Any]) -> str:
    """Each step over the plain pipeline's: measured as a bar with its quartiles, simulated as a ring."""
    out, zero, bar = Drawing(), 220.0, 420.0
    out.text(PAD, 26, ("A step of the rewritten pipeline over one of the plain pipeline", "head"))
    out.text(PAD, 44, ("bars: measured, with quartiles; rings: simulated", "hint"))
    rows = {name: row for name, row in rows.items() if name != "(plain)"}
    most = max(max(f["simulated"], *f["quartiles"]) for row in rows.values() for f in row.values())
    colours = dict(zip(next(iter(rows.values())), (*list(KINDS.values())[:3], KINDS["mixer"]), strict=False))
    y, at = 60.0, lambda value: zero + bar * value / most
    for name, row in rows.items():
        out.text(PAD, y + 14, (name, "plain"))
        for setup, found in row.items():
            low, high = found["quartiles"]
            out.box(zero, y, at(found["measured"]) - zero, 10, colours[setup], radius=2)
            out.path(f"M{at(low):g} {y + 5:g} H{at(high):g}", LINE, 1.5)
            out.circle(at(found["simulated"]), y + 5, 4, "none", INK, 1.6)
            y += 14
        y += 10
    out.path(f"M{at(1):g} 54 V{y:g}", GREY, 1, "3 3")
    x = float(PAD)
    for setup, colour in colours.items():
        out.circle(x + 6, y + 12, 6, colour)
        x = out.text(x + 17, y + 16, (setup, "plain")) + 18
    out.reach(zero + bar + 20, y + 20)
    return out.svg()
