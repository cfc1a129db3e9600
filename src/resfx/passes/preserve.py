"""Running somebody's model and leaving it as it was."""

from __future__ import annotations

import contextlib
import copy
import random
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from resfx._torch import held_buffers, tracing

from .leftovers import nothing_left

CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)
"""What code writes into beside attributes, and can be given its contents again."""


@contextlib.contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Inside, a model's forward may run; what it sets beside its results is then as before.

    Attributes come back, also those that were added or removed, and so do the contents of the lists, dicts, sets and
    deques that a module holds (its hooks, its buffers' names, its logs), as the same objects, and random number
    generators. What rewrites keep on modules stays: code that was made meanwhile is good.
    """
    before = [(vars(m), {k: v for k, v in vars(m).items() if not k.startswith("_resfx")}) for m in model.modules()]
    contents = {id(v): (v, copy.copy(v)) for _, own in before for v in _containers(own.values())}
    states = [(v, v.get_state()) for _, own in before for v in own.values() if isinstance(v, torch.Generator)]
    try:
        yield
    finally:
        for attributes, own in before:
            for name in set(attributes) - set(own):
                if not name.startswith("_resfx"):
                    del attributes[name]
            attributes.update(own)  # never empty meanwhile: other threads may be running the model
        for container, content in contents.values():
            _refill(container, content)
        for generator, state in states:
            generator.set_state(state)


def _containers(values: Iterable[Any], depth: int = 0) -> Iterator[Any]:
    """The containers among some values, and those in them."""
    for value in values:
        if type(value) in CONTAINERS:
            yield value
            if depth < 3:
                yield from _containers(_values(value), depth + 1)


def _values(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, deque):
        container.clear()
        container.extend(content)
    elif isinstance(container, set):
        container.intersection_update(content)
        container.update(content)
    else:
        for key in [k for k in container if k not in content]:
            del container[key]
        container.update(content)


@contextlib.contextmanager
def values_kept(*models: nn.Module) -> Iterator[None]:
    """Inside, a forward may write into what models hold beside parameters, which has its values again afterwards:
    buffers, and tensors that are plain attributes or lie in containers that are."""
    held = [v for model in models for m in model.modules() for v in vars(m).values()]
    plain = [v for v in [*held, *(x for c in _containers(held) for x in _values(c))] if type(v) is torch.Tensor]
    every = {id(t): t for t in [*(b for model in models for b in model.buffers()), *plain] if not t.is_meta}
    values = [(t, t.detach().clone()) for t in every.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


@contextlib.contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Inside, a model's forward may be traced, by one thread at a time; what it sets then are fake tensors, and go.

    Buffers that are ``None`` are plain attributes inside: ``torch.export`` would write one that the trace sets over an
    input of the graph.
    """
    with tracing(), left_as_found(model), nothing_left(model):
        for module in model.modules():
            for name in [n for n, b in held_buffers(module).items() if b is None]:
                vars(module)[name] = held_buffers(module).pop(name)
        yield


@contextlib.contextmanager
def preserved(*models: nn.Module) -> Iterator[None]:
    """Inside, models may run and train; afterwards gradients, buffers, attributes, training flags and generators are as
    before.

    Gradients are ``None`` at the start. Buffers and plain tensors are the same with the values they had, also buffers
    that a forward replaced; ones it registered are gone. Parameters are never written by a step without an optimizer:
    they need no copy. The generators are Python's, NumPy's and torch's, of the CPU and of the models' CUDA devices.
    """
    every = {id(m): m for model in models for m in model.modules()}.values()
    modules = [m for m in every if not isinstance(m, torch.jit.ScriptModule)]  # whose state is not Python's
    parameters = {id(p): p for model in models for p in model.parameters()}.values()
    flags = [(m, m.training) for m in modules]
    buffers = [(held_buffers(m), dict(held_buffers(m))) for m in modules]
    grads = [(p, p.grad) for p in parameters]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    tensors = (*parameters, *(b for model in models for b in model.buffers()))
    devices = sorted({t.device.index or 0 for t in tensors if t.is_cuda})
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(values_kept(*models))
        for model in models:
            stack.enter_context(left_as_found(model))
        try:
            for parameter in parameters:
                parameter.grad = None
            yield
        finally:
            for module, flag in flags:
                module.training = flag
            for held, own in buffers:
                held.clear()
                held.update(own)
            for parameter, grad in grads:
                parameter.grad = grad
            random.setstate(of_python)
            np.random.set_state(of_numpy)


@contextlib.contextmanager
def without_recomputation() -> Iterator[None]:
    """Inside, this thread's reentrant checkpoints call their function as it is: they run it without gradients, and know
    of no backward pass but one that writes ``.grad``."""
    held: Any = CheckpointFunction
    thread, apply, outer = threading.get_ident(), held.apply, vars(held).get("apply")

    def call(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args) if threading.get_ident() == thread else apply(function, preserve, *args)

    held.apply = call
    try:
        yield
    finally:
        if outer is None:  # its own is inherited
            del held.apply
        else:
            held.apply = outer
