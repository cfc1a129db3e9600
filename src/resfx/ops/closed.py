"""Formulas with gradients in closed form, called with no more than a small call can afford."""

from __future__ import annotations

from typing import Any

import torch

from resfx._torch import is_compiling, transforming


class Closed(torch.autograd.Function):
    """Base of a formula that brings its gradients: ``forward`` without a context, ``setup_context``, ``backward``.

    ``apply`` binds a Python signature at every call, which takes longer than the operators of a small formula.
    """

    @classmethod
    def call(cls, *args: Any) -> Any:
        """What ``apply`` gives; where nothing records gradients, the formula alone."""
        if is_compiling() or transforming():
            return cls.apply(*args)
        if not torch.is_grad_enabled():
            return cls.forward(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]
