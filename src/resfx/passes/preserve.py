"""Running somebody's model and leaving it as it was."""

from __future__ import annotations

import contextlib
import copy
import random
import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from resfx._torch import held_buffers

TRACING = threading.RLock()
"""Held while anything is traced: ``torch.export`` and what surrounds it keep global state."""


@contextlib.contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Inside, a model's forward may run; the attributes that it sets are then as before.

    Attributes come back, also those that were added or removed, and so do lists, dicts and sets that a module holds
    (its hooks, its buffers' names), as the same objects.
    """
    before = [(vars(m), dict(vars(m))) for m in model.modules()]
    held = [v for _, own in before for v in own.values() if type(v) in (list, dict, set, OrderedDict)]
    contents = [(v, copy.copy(v)) for v in {id(v): v for v in held}.values()]
    try:
        yield
    finally:
        for attributes, own in before:
            for name in set(attributes) - set(own):
                del attributes[name]
            attributes.update(own)  # never empty meanwhile: other threads may be running the model
        for container, content in contents:
            if isinstance(container, list):
                container[:] = content
            elif isinstance(container, set):
                container.intersection_update(content)
                container.update(content)
            else:
                for key in [k for k in container if k not in content]:
                    del container[key]
                container.update(content)


@contextlib.contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Inside, a model's forward may be traced, by one thread at a time; what it sets then are fake tensors, and go.

    Buffers that are ``None`` are plain attributes inside: ``torch.export`` would write one that the trace sets over an
    input of the graph.
    """
    with TRACING, left_as_found(model):
        for module in model.modules():
            for name in [n for n, b in held_buffers(module).items() if b is None]:
                vars(module)[name] = held_buffers(module).pop(name)
        yield


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
