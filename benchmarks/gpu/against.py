"""Kernels against formulas in float64: a call's result and every gradient, within what its type can hold."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from resfx._torch import pytree

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""Of a result, relative to its largest element; twice that for gradients."""


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers on the default device, the same ones on every device and in every type."""
    return torch.randn(shape, dtype=torch.float64, device="cpu").to(torch.get_default_device(), dtype)


def turned(x: Tensor) -> Tensor:
    """The same numbers, in memory the other way round."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def agree(
    public: Callable[..., Tensor], formula: Callable[..., Tensor], args: Sequence[Any], dtype: torch.dtype,
    node: str = "GeneratedBackwardFor_resfx",
) -> float:  # fmt: skip
    """Hold result and every gradient of the kernels against the formula in float64.

    Args:
        public: the library's function.
        formula: the same in plain torch.
        args: of both, positional.
        dtype: whose tolerance holds.
        node: part of the name of the result's gradient function.

    Returns:
        The largest error as a share of what is allowed.

    Raises:
        AssertionError: where an error is larger, or a gradient has another shape or type than its argument.
    """
    leaves, spec = pytree.tree_flatten(args)
    real = [isinstance(x, Tensor) and x.is_floating_point() for x in leaves]
    given = [x.detach().requires_grad_() if r else x for x, r in zip(leaves, real, strict=True)]
    wide = [x.detach().double().requires_grad_() if r else x for x, r in zip(leaves, real, strict=True)]
    got = public(*pytree.tree_unflatten(given, spec))
    want = formula(*pytree.tree_unflatten(wide, spec))
    assert node in type(got.grad_fn).__name__, f"the result is from {type(got.grad_fn).__name__}"
    assert got.shape == want.shape, f"the result is {tuple(got.shape)}, not {tuple(want.shape)}"
    grad = torch.randn(want.shape, dtype=torch.float64, device="cpu").to(want.device, got.dtype)
    floats = lambda xs: [x for x, r in zip(xs, real, strict=True) if r]
    found = torch.autograd.grad(got, floats(given), grad)
    wanted = torch.autograd.grad(want, floats(wide), grad.double())
    worst = 0.0
    for i, (a, e) in enumerate(zip((got, *found), (want, *wanted), strict=True)):
        worst = max(worst, share_of(a, e, TOLERANCE[dtype], f"gradient {i}" if i else "result"))
    for i, (a, leaf) in enumerate(zip(found, floats(given), strict=True)):
        assert a.dtype == leaf.dtype and a.shape == leaf.shape, f"gradient {i + 1} is {a.dtype} {tuple(a.shape)}"
    return worst


def share_of(got: Tensor, want: Tensor, tolerance: float, name: str) -> float:
    """The largest error as a share of what is allowed; raises where it is more than that."""
    got, want = got.detach().double(), want.detach()
    near = tolerance * (1 if name == "result" else 2) * max(float(want.abs().max()), 1e-2)
    shares = (got - want).abs() / (near + tolerance * want.abs())
    worst = float(shares.nan_to_num(torch.inf).max())
    assert worst <= 1, (
        f"{name}: {worst:.3g} of the tolerance, {int((shares.nan_to_num(torch.inf) > 1).sum())} of {shares.numel()}"
        f" elements beyond it"
    )
    return worst


@contextlib.contextmanager
def watched(kernels: ModuleType) -> Iterator[Counter[str]]:
    """Inside, calls of the kernels' ``forward`` and ``gradients`` are counted."""
    counts: Counter[str] = Counter()
    before = {name: getattr(kernels, name) for name in ("forward", "gradients")}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counts[name] += 1
            return before[name](*args)

        return call

    try:
        for name in before:
            setattr(kernels, name, counting(name))
        yield counts
    finally:
        for name, run in before.items():
            setattr(kernels, name, run)
