"""Running somebody's model and leaving it as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from resfx._torch import held_buffers


@contextlib.contextmanager
def preserved(*models: nn.Module) -> Iterator[None]:
    """Inside, models may run and train; afterwards gradients, buffers, training flags and generators are as before.

    Gradients are ``None`` at the start. Buffers are the same tensors with the values they had, also those that a
    forward replaced; ones it registered are gone. Parameters are never written by a step without an optimizer, so they
    need no copy. The generators are Python's, NumPy's and torch's, of the CPU and of the models' CUDA devices.
    """
    modules = {id(m): m for model in models for m in model.modules()}.values()
    parameters = {id(p): p for model in models for p in model.parameters()}.values()
    flags = [(m, m.training) for m in modules]
    buffers = [(held_buffers(m), dict(held_buffers(m))) for m in modules]
    unique = {id(b): b for _, own in buffers for b in own.values() if b is not None}
    values = [(b, b.detach().clone()) for b in unique.values()]
    grads = [(p, p.grad) for p in parameters]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = sorted({t.device.index or 0 for t in (*parameters, *unique.values()) if t.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            for parameter in parameters:
                parameter.grad = None
            yield
        finally:
            for module, flag in flags:
                module.training = flag
            with torch.no_grad():
                for buffer, value in values:
                    buffer.copy_(value)
            for held, own in buffers:
                held.clear()
                held.update(own)
            for parameter, grad in grads:
                parameter.grad = grad
            random.setstate(of_python)
            np.random.set_state(of_numpy)
