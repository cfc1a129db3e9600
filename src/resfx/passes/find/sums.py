"""Every way in which a graph spells ``x + f``: which operator adds what, and with which factors.

``a + b``, ``a - b`` and ``add(a, b, alpha)`` have their terms among their arguments; ``stack((a, b)).sum(0)`` and its
kin in a list before; ``addcmul`` and ``addmm`` add a product. Where terms round together, or stand in no tensor of
their own, the host's own result is what a rewrite starts from: see :class:`resfx.passes.find.terms.Term`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from . import operators as ops
from .graph import shape
from .index import Index
from .reasons import FACTOR, FUSED, JOINED, LERP, LISTED, MANY, ROWS
from .terms import Slot, Sum, Term


def sum_of(node: fx.Node, index: Index) -> Sum | None:
    """What an operator adds, or ``None`` where it adds no tensors."""
    reader = _READERS.get(index.name[node])
    return reader(node, index) if reader is not None else None


def _slot(node: fx.Node, place: int, *names: str) -> Slot | None:
    """A tensor argument, by its place or one of its names."""
    keys: list[int | str] = [place] if place < len(node.args) else [n for n in names if n in node.kwargs]
    return Slot(node, keys[0]) if keys else None


def _value(node: fx.Node, place: int, name: str, default: Any) -> Any:
    slot = _slot(node, place, name)
    return default if slot is None else slot.read()


def _tensors(slots: Sequence[Slot | None], index: Index) -> list[Slot] | None:
    """The slots, if a tensor stands in each."""
    found = [s for s in slots if s is not None and isinstance(s.read(), fx.Node) and index.is_tensor(s.read())]
    return found if len(found) == len(slots) else None


def _weighted(node: fx.Node, slots: Sequence[Slot], weights: Sequence[Any]) -> Sum:
    if not all(isinstance(w, (int, float)) for w in weights):
        return Sum(node, reason=FACTOR, pairs=_pairs(slots))
    return Sum(node, tuple(Term((s,), w) for s, w in zip(slots, weights, strict=True)))


def _pairs(slots: Sequence[Slot]) -> tuple[tuple[fx.Node, fx.Node], ...]:
    """The first of several terms with each other one."""
    first, *rest = [s.read() for s in slots]
    return tuple((first, x) for x in rest[-4:])


def _negated(alpha: Any) -> Any:
    return -alpha if isinstance(alpha, (int, float)) else alpha


def _add(node: fx.Node, index: Index) -> Sum | None:
    slots = _tensors([_slot(node, 0, "input", "self"), _slot(node, 1, "other")], index)
    return None if slots is None else _weighted(node, slots, (1, node.kwargs.get("alpha", 1)))


def _sub(node: fx.Node, index: Index) -> Sum | None:
    if len(index.data[node]) < 2:
        return None  # a state less its own average
    slots = _tensors([_slot(node, 0, "input", "self"), _slot(node, 1, "other")], index)
    return None if slots is None else _weighted(node, slots, (1, _negated(node.kwargs.get("alpha", 1))))


def _rsub(node: fx.Node, index: Index) -> Sum | None:
    slots = _tensors([_slot(node, 1, "other"), _slot(node, 0, "input", "self")], index)
    return None if slots is None else _weighted(node, slots, (1, _negated(node.kwargs.get("alpha", 1))))


def _lerp(node: fx.Node, index: Index) -> Sum | None:
    slots = _tensors([_slot(node, 0, "input", "self"), _slot(node, 1, "end")], index)
    weight = _value(node, 2, "weight", None)
    if slots is None or not isinstance(weight, (int, float)):
        return None if slots is None else Sum(node, reason=LERP, pairs=_pairs(slots))
    return _weighted(node, slots, (1 - weight, weight))


def _plus_product(names: tuple[str, str], product: Callable[..., Any]) -> Callable[[fx.Node, Index], Sum | None]:
    """``input * beta + alpha * a b``."""

    def read(node: fx.Node, index: Index) -> Sum | None:
        first, *factors = _slot(node, 0, "input", "self"), *(_slot(node, 1 + i, n) for i, n in enumerate(names))
        slots = _tensors([first, *factors], index)
        if slots is None:
            return None
        beta = node.kwargs.get("beta", 1)
        alpha = node.kwargs.get("alpha", node.kwargs.get("value", 1))
        if not (isinstance(alpha, (int, float)) and isinstance(beta, (int, float))):
            return Sum(node, reason=FACTOR, pairs=_pairs(slots))
        return Sum(node, (Term((slots[0],), beta), Term(tuple(slots[1:]), alpha, product)))

    return read


def _apart(reason: str, *places: int, if_true: Callable[[fx.Node], bool] = lambda node: True) -> Any:
    """An operator whose terms cannot be had: ``places`` are those of the operands."""

    def read(node: fx.Node, index: Index) -> Sum | None:
        slots = _tensors([_slot(node, 0, "input", "self"), *(_slot(node, p) for p in places)], index)
        return Sum(node, reason=reason, pairs=_pairs(slots)) if slots is not None and if_true(node) else None

    return read


def _item(node: fx.Node, index: Index) -> Sum | None:
    """One tensor of ``_foreach_add((x, ...), (f, ...))``."""
    source, place = node.args[0], node.args[1]
    if not (isinstance(source, fx.Node) and index.name.get(source) in ("_foreach_add", "_foreach_sub")):
        return None
    if ops.is_inplace(source) or not isinstance(place, int) or len(source.args) < 2:
        return None
    if not all(isinstance(a, (list, tuple)) for a in source.args[:2]):
        return None
    slots = _tensors([Slot(source, 0, place), Slot(source, 1, place)], index)
    alpha = source.kwargs.get("alpha", 1)
    if slots is None:
        return None
    weights = (1, alpha if index.name[source] == "_foreach_add" else _negated(alpha))
    return replace(_weighted(node, slots, weights), joins=(source,))


def _listed(node: fx.Node, index: Index) -> Sum | None:
    if not (ops.is_inplace(node) and len(node.args) > 1 and all(isinstance(a, (list, tuple)) for a in node.args[:2])):
        return None
    pairs = [(x, f) for x, f in zip(*node.args[:2], strict=False) if isinstance(f, fx.Node)]  # type: ignore[arg-type]
    return Sum(node, reason=LISTED, pairs=tuple(pairs))  # type: ignore[arg-type]


def _reduced(node: fx.Node, index: Index) -> Sum | None:
    """``stack((a, b)).sum(0)``, and its mean."""
    source, dims = _value(node, 0, "input", None), _value(node, 1, "dim", None)
    if not isinstance(source, fx.Node) or not isinstance(dims, (int, list, tuple)):
        return None
    axes = [dims] if isinstance(dims, int) else list(dims)
    more = len(axes) > 1 or _value(node, 2, "keepdim", False) or node.kwargs.get("dtype") is not None
    found = (_over(node, source, dim, index.name[node] == "mean", bool(more), index) for dim in axes)
    return next((each for each in found if each is not None), None)


def _accumulated(node: fx.Node, index: Index) -> Sum | None:
    """``stack((a, b)).cumsum(0)``: the last of its rows is the sum."""
    source, dim = _value(node, 0, "input", None), _value(node, 1, "dim", None)
    return (
        _over(node, source, dim, False, True, index) if isinstance(source, fx.Node) and isinstance(dim, int) else None
    )


def _product(node: fx.Node, index: Index) -> Sum | None:
    """``stack((a, b), -1) @ weights``, and the weights first."""
    for place, name in enumerate(("input", "other")):
        source = _value(node, place, name, None)
        if isinstance(source, fx.Node) and index.name.get(source) == "stack":  # no further: rotary halves are stacked
            rank = len(shape(source) or ())
            found = _over(node, source, -1 if place == 0 or rank == 1 else -2, False, True, index)
            if found is not None:
                return found
    return None


def _einsum(node: fx.Node, index: Index) -> Sum | None:
    """``einsum("k...->...", stack((a, b)))``; with more operands the terms have weights that are tensors."""
    equation, operands = node.args[0], list(node.args[1:])
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    if not isinstance(equation, str) or "->" not in equation:
        return None
    before, after = equation.replace(" ", "").replace("...", ".").split("->")
    for source, axes in zip(operands, before.split(","), strict=False):
        gone = [i for i, axis in enumerate(axes) if axis not in after]
        if not isinstance(source, fx.Node) or len(gone) != 1:
            continue
        dim = gone[0] - len(axes) if "." in axes[: gone[0]] else gone[0]
        alone = len(operands) == 1 and axes.replace(axes[gone[0]], "") == after
        if (found := _over(node, source, dim, False, not alone, index)) is not None:
            return found
    return None


def _over(node: fx.Node, source: fx.Node, dim: int, mean: bool, apart: bool, index: Index) -> Sum | None:
    """A sum over one axis of ``source``; ``apart`` where it does more than that."""
    joined = source
    for _ in range(6):
        if index.name[joined] in ("stack", "cat", "concat", "concatenate"):
            break
        onward = [x for x in index.data[joined] if not index.constant[x]]
        if index.role[joined] not in ("pass", "scale") or not onward:
            return None
        joined = max(onward, key=lambda x: index.name[x] in ("stack", "cat"))
    terms = _joined(joined, dim, index)
    if terms is None or len(terms) < 2:
        return None
    if apart or joined is not source:
        return Sum(node, reason=JOINED, pairs=_pairs(terms))
    if len(terms) > 2:
        return Sum(node, reason=MANY, pairs=_pairs(terms))
    joins = dict.fromkeys((joined, *(slot.holder for slot in terms)))
    return replace(_weighted(node, terms, (0.5, 0.5) if mean else (1, 1)), joins=tuple(joins))


def _joined(node: fx.Node, dim: int, index: Index) -> list[Slot] | None:
    """The tensors that ``stack`` joins along an axis of its own, or ``cat`` with an axis of one added to each."""
    operands = _value(node, 0, "tensors", None)
    axis = _value(node, 1, "dim", 0)
    if index.name[node] not in ("stack", "cat", "concat", "concatenate") or not isinstance(operands, (list, tuple)):
        return None
    key: int | str = 0 if node.args else "tensors"
    slots = _tensors([Slot(node, key, i) for i in range(len(operands))], index)
    sizes = shape(node)
    rank = len(sizes) if sizes is not None else None
    if slots is None or not (axis == dim or (rank is not None and axis % rank == dim % rank)):
        return None
    if index.name[node] == "stack":
        return slots
    added = [s.read() for s in slots]
    if not all(index.name[x] == "unsqueeze" and x.args[1] in (axis, dim) for x in added):
        return None
    return [Slot(x, 0) for x in added]


_READERS: dict[str, Callable[[fx.Node, Index], Sum | None]] = {
    "add": _add, "sub": _sub, "subtract": _sub, "rsub": _rsub, "lerp": _lerp, "sum": _reduced, "mean": _reduced,
    "nansum": _reduced, "einsum": _einsum, "cumsum": _accumulated, "matmul": _product, "mv": _product,
    "getitem": _item, "_foreach_add": _listed, "_foreach_sub": _listed,
    "addcmul": _plus_product(("tensor1", "tensor2"), operator.mul),
    "addcdiv": _plus_product(("tensor1", "tensor2"), operator.truediv),
    "addmm": _plus_product(("mat1", "mat2"), torch.matmul),
    "baddbmm": _plus_product(("batch1", "batch2"), torch.matmul),
    "addbmm": _apart(FUSED, 1, 2), "addr": _apart(FUSED, 1, 2), "addmv": _apart(FUSED, 1, 2),
    "index_add": _apart(ROWS, 3), "scatter_add": _apart(ROWS, 3),
    "scatter_reduce": _apart(ROWS, 3, if_true=lambda n: _value(n, 4, "reduce", "") == "sum"),
    "index_put": _apart(ROWS, 2, if_true=lambda n: bool(_value(n, 3, "accumulate", False))),
}  # fmt: skip
