"""Two results of the same parameters, held against each other by all of their gradients."""

from __future__ import annotations

import torch


def hold_gradients(got, want, parameters) -> None:
    """Gradients of every parameter, of one sum with weights of its own for each number; new ones are not zero."""
    weight = torch.cos(torch.arange(want.numel(), dtype=torch.float64)).view_as(want)
    grads = [torch.autograd.grad((y * weight).sum(), list(parameters.values()), allow_unused=True) for y in (got, want)]
    for each, a, b in zip(parameters, *grads, strict=True):
        assert (a is None) == (b is None), each
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8, msg=lambda m, n=each: f"{n}: {m}")
    assert all(g is not None and g.abs().max() > 0 for n, g in zip(parameters, grads[0], strict=True) if "resfx." in n)
