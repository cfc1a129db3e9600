"""What a captured graph assumes about its inputs, as one generated predicate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from resfx._torch import SYMPY_INTERP, PythonPrinter, guards_of

Accepts = Callable[[Sequence[torch.Tensor]], bool]


def guard_function(program: ExportedProgram, placeholders: Sequence[Any], prefix: str) -> Accepts:
    """A predicate over the tensor inputs of a capture.

    ``torch.export`` assumes that a symbolic size is at least 2 and takes branches on it (``if length > 1``)
    without leaving a guard, so a size of 0 or 1 is refused here and makes its own capture.

    Args:
        placeholders: the fake values of the inputs, in order.
        prefix: how the tracer names the list of inputs, e.g. ``"L['leaves']"``.
    """
    lines: list[str] = []
    derived: list[tuple[str, Any]] = []
    names: dict[Any, str] = {}
    printer = PythonPrinter()
    for i, value in enumerate(placeholders):
        lines.append(f"if leaves[{i}].dim() != {value.dim()}: return False")
        for j, size in enumerate(value.shape):
            here = f"leaves[{i}].shape[{j}]"
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
                low, high = _bounds(program, expr)
                lines.append(f"if {names[expr]} < {low}: return False")
                if high is not None:
                    lines.append(f"if {names[expr]} > {high}: return False")
    for here, expr in derived:
        if all(s in names for s in expr.free_symbols):
            text = printer.doprint(expr.subs({s: _symbol(names[s]) for s in expr.free_symbols}))
            lines.append(f"if {here} != {text}: return False")
    for guard in guards_of(program):
        text = guard.replace(prefix, "leaves").replace("\n", " ")
        # What an example shares its storage with, as ``ids[:, :-1]`` does, says nothing of other calls.
        if "L[" not in text and "._base" not in text:
            lines.append(f"if not ({text}): return False")
    source = "def accepts(leaves):\n" + "".join(f"    {line}\n" for line in lines) + "    return True\n"
    scope: dict[str, Any] = {**SYMPY_INTERP, "math": math, "torch": torch}
    exec(source, scope)
    return scope["accepts"]


def _bounds(program: ExportedProgram, symbol: Any) -> tuple[int, int | None]:
    bounds = program.range_constraints.get(symbol)
    if bounds is None:
        return 2, None
    low = int(bounds.lower) if bounds.lower.is_finite else 2
    high = int(bounds.upper) if bounds.upper.is_finite and bounds.upper < 2**62 else None
    return max(low, 2), high


def _symbol(name: str) -> Any:
    import sympy

    return sympy.Symbol(name, integer=True, positive=True)
