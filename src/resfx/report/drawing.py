"""SVG elements: text, boxes, lines and discs in the colours of the pictures, on light ground or dark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from xml.sax.saxutils import escape, quoteattr

KINDS = {"attention": "#3b6fd4", "mlp": "#e08a1e", "conv": "#2f9e6e", "mixer": "#8a5cd1", "other": "#7b8794"}
INK, GREY, LINE, BAND, EDGE, PAPER, MARK = (
    "#1f2933", "#7b8794", "#52606d", "#f3f5f8", "#d5dbe3", "#ffffff", "#c2255c",
)  # fmt: skip
DARK = {INK: "#e4e7eb", GREY: "#9aa5b1", LINE: "#9aa5b1", BAND: "#1d242d", EDGE: "#3e4c59", PAPER: "#14181e",
        MARK: "#f06595"}  # fmt: skip
PAD, GAP = 14, 10
STYLES = {  # size, colour, weight
    "title": (18, INK, 700), "head": (13, INK, 700), "bold": (12, INK, 700), "plain": (12, INK, 400),
    "mark": (12, MARK, 700), "hint": (12, GREY, 400), "small": (11, GREY, 400),
    **{kind: (12, colour, 700) for kind, colour in KINDS.items()},
}  # fmt: skip


class Drawing:
    """SVG elements and the room they take."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.width = self.height = 0.0

    def text(self, x: float, y: float, *runs: tuple[str, str], anchor: str = "start") -> float:
        """Write runs of ``(text, style)`` on one line; returns where it ends, about."""
        spans, end = "", x
        for i, (text, style) in enumerate(runs):
            size, colour, weight = STYLES[style]
            gap = f' dx="{GAP}"' if i else ""
            spans += f'<tspan{gap} font-size="{size}" fill="{colour}" font-weight="{weight}">{escape(text)}</tspan>'
            end += text_width(text, style) + (GAP if i else 0)
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{spans}</text>')
        end = end if anchor == "start" else x
        self.reach(end, y + 5)
        return end

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none",
            radius: float = 6) -> None:  # fmt: skip
        """A rectangle with round corners."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{stroke}"/>'
        )
        self.reach(x + width, y + height)

    def path(self, d: str, colour: str = LINE, width: float = 2, dashes: str = "") -> None:
        """A line along SVG path data."""
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>')

    def circle(self, x: float, y: float, radius: float, fill: str, stroke: str = "none", width: float = 0) -> None:
        """A disc or a ring."""
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{stroke}" stroke-width="{width:g}"/>'
        )

    @contextmanager
    def group(self, **attributes: str) -> Iterator[None]:
        """What is drawn meanwhile is one group; an underscore in a name stands for a hyphen."""
        given = "".join(
            f" {name.rstrip('_').replace('_', '-')}={quoteattr(value)}" for name, value in attributes.items()
        )
        self.parts.append(f"<g{given}>")
        yield
        self.parts.append("</g>")

    def svg(self) -> str:
        """The document; where the reader's system is dark, it is too."""
        width, height = self.width + PAD, self.height + PAD
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">\n'
            f"<style>@media (prefers-color-scheme: dark) {{{dark_rules()}}}</style>\n"
            f'<rect width="{width:g}" height="{height:g}" fill="{PAPER}"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )

    def reach(self, x: float, y: float) -> None:
        """Make room up to a point."""
        self.width, self.height = max(self.width, x), max(self.height, y)


def text_width(text: str, style: str) -> float:
    """About how wide a line of text is; SVG has no way to ask."""
    size, _, weight = STYLES[style]
    return (0.56 if weight == 400 else 0.62) * size * len(text)


def dark_rules(inside: str = "") -> str:
    """Style rules that put the dark colours in the place of the light ones."""
    return " ".join(
        f'{inside} [{what}="{light}"] {{ {what}: {dark} }}'
        for light, dark in DARK.items() for what in ("fill", "stroke") if (light, what) != (PAPER, "stroke")
    )  # fmt: skip
