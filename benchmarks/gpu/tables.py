"""The operators' tables: kernel, plain torch and Inductor's code, the paper's form, and others' packages.

Floors are the bytes that must move: each operand in, the result out; with gradients also the result's in, the operands
again, and theirs out.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks import authors, operators
from benchmarks.common import MODES, Case, compiled, group, steps

from .operators import OPERATORS, Operator
from .real import real
from .record import Writer
from .rivals import rivals
from .settings import Settings, forced

KERNEL, PLAIN, COMPILED = "kernel, eager", "plain torch, eager", "plain torch, compiled"
"""The forms that :mod:`benchmarks.gpu.choices` compares, by the names they have in the tables."""


def operator(name: str, writer: Writer, settings: Settings) -> None:
    """A row for each size and mode, in the type that models train in: a whole group of cases, timed in turns."""
    found = OPERATORS[name]
    dtype = torch.bfloat16 if torch.bfloat16 in found.types else torch.float32
    for size, mode in itertools.product(("large", "small"), MODES):
        writer.once(f"{size}, {mode}", functools.partial(_group, found, size, dtype, mode, settings))


def in_float32(name: str, writer: Writer, settings: Settings) -> None:
    """The large size in float32."""
    for mode in MODES:
        writer.once(mode, functools.partial(_group, OPERATORS[name], "large", torch.float32, mode, settings))


def _group(found: Operator, size: str, dtype: torch.dtype, mode: str, settings: Settings) -> dict[str, Any]:
    with torch.device(settings.device):
        args = real(found.name, settings.large if size == "large" else settings.small, dtype)
    tensors = [x for arg in args for x in (arg if isinstance(arg, list) else [arg]) if isinstance(x, Tensor)]
    of = lambda function: flat(function, args)
    with torch.no_grad(), forced(found.name, "torch"):
        result = found.public(*args)
    moved, out = sum(t.nbytes for t in tensors), result.nbytes
    floor = moved + out if mode == "forward" else 3 * moved + 2 * out
    made = [
        Case(KERNEL, _in_form(found.name, "triton", steps(of(found.public), tensors, mode))),
        Case(PLAIN, _in_form(found.name, "torch", steps(of(found.public), tensors, mode))),
        Case(COMPILED, steps(compiled(of(found.public)), tensors, mode)),
    ]
    if size == "large":
        made.append(Case("as a paper writes it, eager", steps(of(found.paper), tensors, mode)))
        made.append(Case("as a paper writes it, compiled", steps(compiled(of(found.paper)), tensors, mode)))
        for label, function in _others(found, args, settings):
            made.append(Case(label, steps(of(checked(function, result)), tensors, mode)))
    rows = group(found.title, made, COMPILED, floor, settings, shape=list(tensors[0].shape), dtype=str(dtype)[6:],
                 size=size, mode=mode)  # fmt: skip
    return {"rows": rows}


def flat(function: Callable[..., Tensor], args: Sequence[Any]) -> Callable[..., Tensor]:
    """A function of the tensors among ``args`` alone, in their order; lists of them are flattened."""
    counts = [len(a) if isinstance(a, list) else 1 if isinstance(a, Tensor) else 0 for a in args]
    lists, fixed = [isinstance(a, list) for a in args], [None if n else a for a, n in zip(args, counts, strict=True)]

    def call(*tensors: Tensor) -> Tensor:
        given, at = [], 0
        for count, many, value in zip(counts, lists, fixed, strict=True):
            part: Any = list(tensors[at : at + count])
            given.append(part if many else part[0] if count else value)
            at += count
        return function(*given)

    return call


def _in_form(operator: str, form: Any, step: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with forced(operator, form):
            return step()

    return run


def checked(function: Callable[..., Tensor], want: Tensor) -> Callable[..., Tensor]:
    """Another's function, whose first result is held against ours: one that computes something else is not timed."""
    seen: list[float] = []

    def call(*args: Any) -> Tensor:
        got = function(*args)
        if not seen:
            seen.append(float((got.float() - want.float()).abs().max() / want.float().abs().max()))
        if not seen[0] < 0.05:
            raise AssertionError(f"computes something else: {seen[0]:.2g} of the largest element apart")
        return got

    return call


def _others(found: Operator, args: Sequence[Any], settings: Settings) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield from rivals(found.name, args)
    if found.name == "attention_read" and settings.authors:
        theirs = authors.find(settings.authors)
        if "read" in theirs:
            read = authors.read(theirs["read"], args[1].shape[-1], settings.device)
            yield "the authors' code, eager", lambda sources, query, *_: read(query, sources[-1], *sources)


def site(writer: Writer, settings: Settings) -> None:
    """A whole residual site of DDL with its gates and the norm behind it, as ``make bench-operators`` has it."""
    options = SimpleNamespace(device=settings.device, rounds=settings.rounds, threads=settings.threads,
                              authors=settings.authors, rows=8 if settings.dry else 8192)  # fmt: skip
    writer.once("all", lambda: {"rows": list(operators.site(options))})
