"""What a captured graph assumes about sizes, as generated predicates over some of its tensors."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram

from resfx._torch import SYMPY_INTERP, PythonPrinter, guards_of

Accepts = Callable[[Sequence[torch.Tensor]], bool]

_SIZE = re.compile(r"L\['leaves'\]\[(\d+)\]\.size\(\)\[(\d+)\]")


@dataclass(frozen=True)
class Assumed:
    """What a trace assumed about the sizes it left open.

    Attributes:
        bounds: least and greatest value by symbol; ``None`` for no greatest.
        conditions: Python texts over the symbols' names.
    """

    bounds: dict[Any, tuple[int, int | None]]
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class Length:
    """An integer of a trace, as the tensor by whose length calls carry it."""

    size: Any
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def shape(self) -> tuple[Any, int]:
        return self.size, 0

    def dim(self) -> int:
        return 2


def assumed(program: ExportedProgram, inputs: Sequence[Any]) -> Assumed:
    """What a program assumes. ``inputs`` are the fake values of its inputs, which its forward calls ``leaves``."""

    def named(match: re.Match[str]) -> str:
        size = inputs[int(match[1])].shape[int(match[2])]
        return str(size if isinstance(size, int) else size.node.expr)

    bounds = {}
    for symbol, held in program.range_constraints.items():
        low = int(held.lower) if held.lower > 2 else 2  # either may be infinite
        bounds[symbol] = (low, int(held.upper) if held.upper < 2**62 else None)
    texts = [_SIZE.sub(named, g).replace("\n", " ") for g in guards_of(program)]
    # What an example shares its storage with, as ``ids[:, :-1]`` does, says nothing of other calls.
    return Assumed(bounds, tuple(t for t in texts if "L[" not in t and "._base" not in t))


def shape_guard(values: Sequence[Any], known: Assumed) -> Accepts:
    """A predicate over tensors that are to be like ``values``, fake ones of a trace.

    ``torch.export`` assumes that a symbolic size is at least 2 and takes branches on it (``if length > 1``)
    without leaving a guard, so a size of 0 or 1 is refused here and makes its own capture. A condition over symbols
    that these tensors do not show is somebody else's.
    """
    lines: list[str] = []
    derived: list[tuple[str, Any]] = []
    names: dict[Any, str] = {}
    printer = PythonPrinter()
    for i, value in enumerate(values):
        lines.append(f"shape{i} = leaves[{i}].shape")  # each look at a shape makes a tuple
        lines.append(f"if len(shape{i}) != {value.dim()}: return False")
        for j, size in enumerate(value.shape):
            here = f"shape{i}[{j}]"
            if isinstance(size, int):
                lines.append(f"if {here} != {size}: return False")
                continue
            expr = size.node.expr
            if not expr.is_symbol:
                derived.append((here, expr))
            elif expr in names:
                lines.append(f"if {here} != {names[expr]}: return False")
            else:
                names[expr] = f"n{len(names)}"
                lines.append(f"{names[expr]} = {here}")
                low, high = known.bounds.get(expr, (2, None))
                lines.append(f"if {names[expr]} < {low}: return False")
                if high is not None:
                    lines.append(f"if {names[expr]} > {high}: return False")
    for here, expr in derived:
        if all(s in names for s in expr.free_symbols):
            lines.append(f"if {here} != {_spelled(printer.doprint(expr), names)}: return False")
    shown = {str(symbol) for symbol in names}
    for text in known.conditions:
        if set(re.findall(r"\b[su]\d+\b", text)) <= shown:
            lines.append(f"if not ({_spelled(text, names)}): return False")
    source = "def accepts(leaves):\n" + "".join(f"    {line}\n" for line in lines) + "    return True\n"
    return _predicate(source)


@functools.cache
def _predicate(source: str) -> Accepts:
    """One function for one text: what equal blocks are guarded by is the same object to a compiler."""
    scope: dict[str, Any] = {**SYMPY_INTERP, "math": math, "torch": torch}
    exec(source, scope)
    return scope["accepts"]


def _spelled(text: str, names: dict[Any, str]) -> str:
    """A text over symbols, over the names that the predicate has for them."""
    known = {str(symbol): name for symbol, name in names.items()}
    return re.sub(r"\b[su]\d+\b", lambda m: known.get(m[0], m[0]), text)
