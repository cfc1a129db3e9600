"""Results of two calls side by side: what the first has is looked up in the second, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from resfx.passes.capture.structure import Flattener, Template

Pair = tuple[torch.Tensor, torch.Tensor]
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


class OtherForm(Exception):
    """One of the two results lacks something that the other has."""


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors of any value, in order."""
    flat = Flattener()
    flat.flatten(value)
    return [t for t in flat.leaves if isinstance(t, torch.Tensor)]


def pairs(want: Any, got: Any) -> list[Pair]:
    """Every tensor of ``want`` with the one that stands at its place in ``got``.

    A stateful object of ``got`` may hold longer lists: the layers that inserted modules add to a cache for the state
    of their own are none of the original's business.

    Raises:
        OtherForm: if anything else differs but the tensors' values; says what.
    """
    a, b = Flattener(), Flattener()
    templates = a.flatten(want), b.flatten(got)
    return [(a.leaves[i], b.leaves[j]) for i, j in _places(*templates, False)]


def _places(a: Template, b: Template, inside: bool) -> Iterator[tuple[int, int]]:
    if a[0] != b[0]:
        raise OtherForm(f"{_word(a)} became {_word(b)}")
    if a[0] == "tensor":
        yield a[1], b[1]
    elif a[0] == "const":
        if isinstance(a[2], _PLAIN) and a[2] != b[2] and not (a[2] != a[2] and b[2] != b[2]):
            raise OtherForm(f"{a[2]!r} became {b[2]!r}")
    elif isinstance(a[-1], tuple):
        if _kind(a) != _kind(b):
            raise OtherForm(f"{_word(a)} became {_word(b)}")
        if len(a[-1]) > len(b[-1]) or (len(a[-1]) < len(b[-1]) and not inside):
            raise OtherForm(f"a {_word(a)} of {len(a[-1])} parts became one of {len(b[-1])}")
        if a[0] == "dict" and a[1] != b[1][: len(a[1])]:
            raise OtherForm(f"the keys {list(a[1])} became {list(b[1])}")
        for x, y in zip(a[-1], b[-1], strict=False):
            yield from _places(x, y, inside or a[0] == "object")


def _kind(template: Template) -> Any:
    return template[1] if isinstance(template[1], type) else template[0]


def _word(template: Template) -> str:
    return template[1].__name__ if len(template) > 1 and isinstance(template[1], type) else str(template[0])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit in value, NaN where NaN is and nowhere else."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference; infinite for other shapes, and where one of the two alone is NaN or infinite."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.detach().to(kind), b.detach().to(kind)
    apart = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0)
    return float(apart.nan_to_num(nan=float("inf"), posinf=float("inf")).max())


def rounded(a: torch.Tensor, b: torch.Tensor, steps: float) -> bool:
    """Equal up to rounding: within ``steps`` units of the type's precision, of the largest finite entry or of 1."""
    if not a.is_floating_point() or a.shape != b.shape:
        return same(a, b)
    return difference(a, b) <= steps * torch.finfo(a.dtype).eps * max(1.0, largest(a))


def largest(a: torch.Tensor) -> float:
    """The largest finite magnitude; zero where there is none."""
    finite = a.detach().abs().nan_to_num(nan=0.0, posinf=0.0)
    return float(finite.max()) if finite.numel() else 0.0
