"""Capture through ``torch.export``: the primary way, for any ``nn.Module`` and one concrete call."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from resfx._torch import denying, held_modules, hold_modules, hook_names
from resfx.errors import CaptureError
from resfx.passes.find.graph import Capture
from resfx.passes.find.mark import note
from resfx.runtime.huggingface import traced_plainly

from .calls import Call, unbind
from .diagnose import diagnose
from .guards import Accepts, guard_function
from .normalize import flatten_graph
from .structure import COMPOUND, Flattener, Template

AUTO = torch.export.Dim.AUTO


def capture_call(
    module: nn.Module,
    forward_class: Any,
    signature: inspect.Signature,
    call: Call,
    denied: Sequence[Literal["exporting", "compiling"]] = (),
    grad: bool = True,
) -> Capture:
    """Capture one call of ``forward_class.forward`` over the tree of ``module``.

    The tree is not changed: the trace runs on a shell that shares its submodules and parameters.

    Args:
        denied: what ``torch.compiler.is_exporting()`` and ``is_compiling()`` say no to while the model's code runs,
            so that code which asks takes the way it takes in eager mode.
        grad: trace with gradients on. A graph traced without is good for calls without.

    Raises:
        CaptureError: with the operator, the user's source line and a remedy.
    """
    outcome: dict[str, Any] = {}

    def forward(self: nn.Module, *leaves: torch.Tensor) -> tuple[Any, ...]:
        given = call.arguments(leaves)
        args, kwargs = unbind(signature, given)
        objects = _objects(given)
        with denying(denied):
            result = forward_class.forward(self, *args, **kwargs)
        flat = Flattener(known=objects)
        outcome["output"] = flat.flatten(result)
        outcome["states"] = [flat.state(o) for o in objects]
        return tuple(flat.leaves)

    images = image_leaves(call)
    dynamic = tuple([dynamic_axes(x, i in images) for i, x in enumerate(call.leaves)])
    shell = shell_of(module, type(forward_class.__name__, (forward_class,), {"forward": forward}))
    try:
        with warnings.catch_warnings(), torch.set_grad_enabled(grad), traced_plainly(module):
            warnings.simplefilter("ignore")
            program = torch.export.export(
                shell, distinct(call.leaves), dynamic_shapes=(dynamic,) if dynamic else None, strict=False
            )
    except Exception as error:
        raise CaptureError(*diagnose(forward_class, error)) from error
    exported = program.module()
    assert isinstance(exported, torch.fx.GraphModule)
    graph, constants = flatten_graph(exported, module)
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    inputs = inputs[: len(inputs) - len(constants)]
    for name, part in zip(call.template[1], call.template[2], strict=True):
        if part[0] == "tensor":
            note(inputs[part[1]], argument=name)
    accepts = guard_function(program, [n.meta["val"] for n in inputs], "L['leaves']")
    if not grad:
        accepts = _without_gradients(accepts)
    return Capture(graph, constants, accepts, outcome["output"], outcome["states"], call.template)


def _without_gradients(accepts: Accepts) -> Accepts:
    return lambda leaves: not torch.is_grad_enabled() and accepts(leaves)


def distinct(leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Inputs for a trace, which would take one tensor given twice (``labels=input_ids``) for one input."""
    first: dict[int, int] = {}
    return tuple(x if first.setdefault(id(x), i) == i else x.detach().clone() for i, x in enumerate(leaves))


def shell_of(module: nn.Module, cls: type) -> nn.Module:
    """A module of another class over the same submodules, parameters and attributes, without hooks."""
    shell: nn.Module = object.__new__(cls)
    shell.__dict__.update(module.__dict__)
    for name in hook_names(shell.__dict__):
        shell.__dict__[name] = type(shell.__dict__[name])()
    hold_modules(shell, {k: m for k, m in held_modules(module).items() if k != "resfx"})
    shell.__dict__.pop("_resfx", None)
    return shell


def _objects(given: dict[str, Any]) -> list[Any]:
    flat = Flattener()
    flat.flatten(given)
    return flat.objects


def image_leaves(call: Call) -> set[int]:
    """Leaves of which only the first axis is open: images or maps given as arguments of their own (a cache's tensors
    are not), and the tensors of objects that say so of themselves by ``batch_only``."""
    direct = [part[1] for part in call.template[-1] if part[0] == "tensor"]
    images = {i for i in direct if call.leaves[i].dim() >= 4 and call.leaves[i].is_floating_point()}
    return images | set(_batch_only(call.template, False))


def _batch_only(template: Template, inside: bool) -> Iterator[int]:
    if template[0] == "tensor" and inside:
        yield template[1]
    if template[0] in COMPOUND:
        inside = inside or (template[0] == "object" and getattr(template[1], "batch_only", False))
        for part in template[-1]:
            yield from _batch_only(part, inside)


def dynamic_axes(leaf: torch.Tensor, image: bool = False) -> dict[int, Any] | None:
    """The axes of an input that are left open, as ``torch.export`` takes them."""
    # An image keeps its size: how the branches divide it is part of the graph. Another size is another capture.
    if image:
        return {0: AUTO} if leaf.shape[0] > 1 else None
    # The tracer takes a size of 0 or 1 for a constant whatever it is told.
    return {i: AUTO for i, size in enumerate(leaf.shape) if size > 1} or None
