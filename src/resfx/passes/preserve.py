"""Running somebody's model and leaving it as it was."""

from __future__ import annotations

import contextlib
import copy
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from resfx._torch import held_buffers, tracing
from resfx.report.progress import log

from .holdings import CONTAINERS, Holdings
from .leftovers import nothing_left
from .tensors import Writes, tensors_as_found

Result = TypeVar("Result")


@contextlib.contextmanager
def left_as_found(model: nn.Module, tensors: bool = True) -> Iterator[None]:
    """Inside, a model's forward may run; what it sets beside its results is then as before.

    Attributes come back, also those that were added or removed, those of objects that a module holds, and the contents
    of lists, dicts, sets and deques (its hooks, its buffers' names, its logs), as the same objects, and random number
    generators. What rewrites keep on modules stays: code that was made meanwhile is good.

    Args:
        tensors: whether attributes, data, gradients and hooks of its tensors come back, too. A trace has fake ones in
            their place, and another thread may be giving the real ones gradients meanwhile.
    """
    holdings = Holdings(model)
    known = [*model.parameters(), *model.buffers(), *_plain(holdings)] if tensors else []
    held_tensors = list({id(t): t for t in known}.values())
    holders = [vars(x) for x in [*model.modules(), *held_tensors, *holdings.objects]]
    before = [(held, {k: v for k, v in held.items() if not k.startswith("_resfx")}) for held in holders]
    of_torch = [v for _, own in before for v in own.values() if type(v) in CONTAINERS]
    contents = {id(v): (v, copy.copy(v)) for v in [*of_torch, *holdings.containers]}
    states = [(v, v.get_state()) for _, own in before for v in own.values() if isinstance(v, torch.Generator)]
    try:
        with tensors_as_found(held_tensors):
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


def _plain(holdings: Holdings) -> list[torch.Tensor]:
    return [t for t in holdings.tensors if type(t) is torch.Tensor]


@contextlib.contextmanager
def values_kept(*models: nn.Module, also: Iterable[torch.Tensor] = ()) -> Iterator[list[torch.Tensor]]:
    """Inside, a forward may write into what models hold beside parameters, which has its values again afterwards:
    buffers, and tensors that are plain attributes or lie in containers and objects that are.

    Args:
        also: tensors beside these, of which some memory is used up.

    Yields:
        a list of those that had to be given their values again; empty until then.
    """
    every = {id(t): t for t in also}
    for model in models:
        every |= {id(t): t for t in [*model.buffers(), *_plain(Holdings(model))]}
    values = [(t, t.detach().clone()) for t in every.values() if not t.is_meta]
    written: list[torch.Tensor] = []
    try:
        yield written
    finally:
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
                    written.append(tensor)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Inside, code may draw from Python's, NumPy's and torch's generators, and seed them."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def watched_run(
    model: nn.Module,
    around: Callable[[], contextlib.AbstractContextManager[Any]],
    run: Callable[[], Result],
    written: dict[int, torch.Tensor] | None = None,
) -> Result:
    """Run code of a model; its parameters and their gradients have their values again afterwards.

    No copy of a model is held for that: values are kept as they are written over, which a dispatch mode sees. Kernels
    may be others under a mode, so this is for runs whose results nobody compares.

    Args:
        around: makes a context for a run, which takes everything else back. There may be two runs: what fails may do so
            by the mode, and is run without it, with a copy of all parameters.
        written: is given the tensors written into, by ``id``, also where the run fails.
    """
    parameters = list(model.parameters())
    held = [*parameters, *(p.grad for p in parameters if p.is_leaf and p.grad is not None)]
    seen = {} if written is None else written
    watch = Writes(held)
    try:
        with around(), watch:
            return run()
    except Exception as error:
        log.info("%s is run again, without a watch: %s", type(model).__name__, error)
    finally:
        watch.put_back()
        seen |= {id(t): t for t, *_ in watch.written.values()}
    changed: list[torch.Tensor] = []
    try:
        with values_kept(also=held) as changed, around():
            return run()
    finally:
        seen |= {id(t): t for t in changed}


@contextlib.contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Inside, a model's forward may be traced, by one thread at a time; what it sets then are fake tensors, and go.

    Buffers that are ``None`` are plain attributes inside: ``torch.export`` would write one that the trace sets over an
    input of the graph.
    """
    with tracing(), generators_kept(), left_as_found(model, tensors=False), nothing_left(model):
        for module in model.modules():
            for name in [n for n, b in held_buffers(module).items() if b is None]:
                vars(module)[name] = held_buffers(module).pop(name)
        yield


@contextlib.contextmanager
def preserved(*models: nn.Module, also: Iterable[torch.Tensor] = ()) -> Iterator[None]:
    """Inside, models may run and train; afterwards gradients, buffers, attributes, training flags and generators are as
    before.

    Gradients are ``None`` at the start. Buffers and plain tensors are the same with the values they had, also buffers
    that a forward replaced; ones it registered are gone. A step without an optimizer writes no parameters: those that
    a model's own code writes are to be named.

    Args:
        also: tensors whose values are to be kept beside these.
    """
    every = {id(m): m for model in models for m in model.modules()}.values()
    modules = [m for m in every if not isinstance(m, torch.jit.ScriptModule)]  # whose state is not Python's
    flags = [(m, m.training) for m in modules]
    buffers = [(held_buffers(m), dict(held_buffers(m))) for m in modules]
    with contextlib.ExitStack() as stack:
        stack.enter_context(generators_kept())
        stack.enter_context(values_kept(*models, also=also))
        for model in models:
            stack.enter_context(left_as_found(model))
        try:
            for parameter in (p for model in models for p in model.parameters()):
                parameter.grad = None
            yield
        finally:
            for module, flag in flags:
                module.training = flag
            for held, own in buffers:
                held.clear()
                held.update(own)


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
