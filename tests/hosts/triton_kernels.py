"""What tests of the Triton kernels share: where they run, and kernels against formulas in float64."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch.utils import _pytree as pytree

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
inside = pytest.mark.skipif(
    not INTERPRETED,
    reason="needs the Triton interpreter: test_under_the_interpreter runs it",
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def draw(*shape, dtype=torch.float64):
    """Normal numbers, the same ones in every type."""
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def agree(public, formula, args, dtype, node="GeneratedBackwardFor_resfx"):
    """Result and every gradient of the kernels against the formula in float64; ``args`` are positional."""
    leaves, spec = pytree.tree_flatten(args)
    real = [isinstance(x, torch.Tensor) and x.is_floating_point() for x in leaves]
    given = [x.detach().requires_grad_() if r else x for x, r in zip(leaves, real, strict=True)]
    wide = [x.detach().double().requires_grad_() if r else x for x, r in zip(leaves, real, strict=True)]
    got = public(*pytree.tree_unflatten(given, spec))
    want = formula(*pytree.tree_unflatten(wide, spec))
    assert node in type(got.grad_fn).__name__ and got.shape == want.shape
    grad = torch.randn(want.shape, dtype=torch.float64).to(got.dtype)
    floats = lambda xs: [x for x, r in zip(xs, real, strict=True) if r]
    found = torch.autograd.grad(got, floats(given), grad)
    wanted = torch.autograd.grad(want, floats(wide), grad.double())
    tolerance = TOLERANCE[dtype]
    for i, (a, e) in enumerate(zip((got, *found), (want, *wanted), strict=True)):
        near = tolerance * (2 if i else 1) * max(float(e.detach().abs().max()), 1e-2)
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=near, msg=lambda m, i=i: f"number {i}: {m}")
    for a, leaf in zip(found, floats(given), strict=True):
        assert a.dtype == leaf.dtype and a.shape == leaf.shape


def turned(x):
    """The same numbers, in memory the other way round."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)
