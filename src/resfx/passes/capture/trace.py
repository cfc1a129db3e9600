"""Capture through ``torch.export``: the primary way, for any ``nn.Module`` and one concrete call."""

from __future__ import annotations

import contextlib
import gc
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Literal

import torch
from torch import fx, nn

from resfx._torch import denying
from resfx.errors import CaptureError
from resfx.passes.find.mark import mark_of, note
from resfx.passes.preserve import traceable, without_recomputation
from resfx.runtime.huggingface import kept_functions, traced_plainly

from .calls import Call, unbind
from .diagnose import diagnose
from .guards import Assumed, assumed, shape_guard
from .marking.contents import Places
from .marking.identities import restore_operands
from .marking.marks import Recorder
from .marking.record import CallRecord, Passed
from .normalize import flatten_graph
from .structure import COMPOUND, Flattener, Template
from .untraced import Untraced

AUTO = torch.export.Dim.AUTO


@dataclass
class Capture:
    """One call of a model as a flat graph over its module tree.

    Attributes:
        graph: placeholders are the tensor leaves of the call, then ``constants``; outputs are flat.
        constants: values of the trailing placeholders.
        accepts: whether tensors are ones the graph was captured for.
        output: structure of the result, or ``None`` where the graph already returns it.
        states: structure of each stateful input object after the call.
        inputs: structure of the call's arguments, or ``None`` where the graph takes them as they are.
        calls: the calls inside, the whole one first; none for a graph that came without.
        objects: stateful objects that pass through them.
        known: what the trace assumed about sizes.
        grad: whether it is good for calls with gradients too.
        of_grad: whether the call that it was made for records them.
    """

    graph: fx.Graph
    constants: list[Any] = field(default_factory=list)
    accepts: Callable[[Sequence[torch.Tensor]], bool] = lambda leaves: True
    output: Template | None = None
    states: list[Template] = field(default_factory=list)
    inputs: Template | None = None
    calls: list[CallRecord] = field(default_factory=list)
    objects: list[Passed] = field(default_factory=list)
    known: Assumed = field(default_factory=lambda: Assumed({}, ()))
    grad: bool = True
    of_grad: bool = True

    @property
    def lifted(self) -> list[fx.Node]:
        """The trailing placeholders, of which :attr:`constants` has the values."""
        return [n for n in self.graph.nodes if n.op == "placeholder" and mark_of(n).lifted]

    def constants_in(self, tree: nn.Module) -> list[Any]:
        """The values of the trailing placeholders; of those that lists, dicts and objects of ``tree`` hold, as they are
        now."""
        held = [mark_of(n).held for n in self.lifted]
        return [at[0].find(tree) if at else v for at, v in zip(held, self.constants, strict=True)]


def capture_call(
    clone: nn.Module,
    signature: inspect.Signature,
    call: Call,
    denied: Sequence[Literal["exporting", "compiling"]] = (),
    grad: bool = True,
    untraced: Untraced | None = None,
    fixed: bool = False,
) -> Capture:
    """Capture one call of a model, over a copy of its tree that may be written to.

    Args:
        clone: what :func:`resfx.passes.capture.clone.clone_tree` made.
        denied: what ``torch.compiler.is_exporting()`` and ``is_compiling()`` say no to while the model's code runs,
            so that code which asks takes the way it takes in eager mode.
        grad: trace with gradients on. A graph traced without is good for calls without.
        untraced: modules whose inside is left out.
        fixed: leave no size open: a graph for calls of these sizes alone.

    Raises:
        CaptureError: with the operator, the user's source line and a remedy.
    """
    outcome: dict[str, Any] = {}
    recorder, held = Recorder(), Places(clone)
    cls = type(clone)
    run = clone.forward  # the instance's own, where it has one

    def forward(self: nn.Module, *leaves: torch.Tensor) -> tuple[Any, ...]:
        given = call.arguments(leaves)
        args, kwargs = unbind(signature, given)
        objects = _objects(given)
        args, kwargs = recorder.begin("", args, kwargs)
        with denying(denied):
            result = recorder.end(run(*args, **kwargs))
        recorder.stop_watching()
        flat = Flattener(known=objects)
        outcome["output"] = flat.flatten(result)
        outcome["states"] = [flat.state(o) for o in objects]
        return (*flat.leaves, *recorder.kept)

    images = image_leaves(call)
    dynamic = tuple([None if fixed else dynamic_axes(x, i in images) for i, x in enumerate(call.leaves)])
    clone.__dict__["forward"] = MethodType(forward, clone)
    if untraced is not None:
        untraced.stand_in(clone)
    try:
        with (
            traceable(clone), warnings.catch_warnings(), torch.set_grad_enabled(grad), traced_plainly(clone),
            recorder.listening(clone, kept_functions(clone)), _for_graphs_alone(), without_recomputation(),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            program = torch.export.export(
                clone, distinct(call.leaves), dynamic_shapes=(dynamic,) if dynamic else None, strict=False
            )
            exported = program.module()
    except Exception as error:
        failed = CaptureError(*diagnose(cls, error))
        failed.inside = recorder.innermost
        raise failed from error
    assert isinstance(exported, torch.fx.GraphModule)
    graph, constants = flatten_graph(exported, clone, held.of)
    recorder.settle(graph)
    restore_operands(graph, {c.number: c for c in recorder.calls})
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    inputs = inputs[: len(inputs) - len(constants)]
    for name, part in zip(call.template[1], call.template[2], strict=True):
        if part[0] == "tensor":
            note(inputs[part[1]], argument=name)
    values = [n.meta["val"] for n in inputs]
    known = assumed(program, values)
    return Capture(
        graph, constants, shape_guard(values, known), outcome["output"], outcome["states"], call.template,
        recorder.calls, recorder.objects, known, grad, recorder.grad,
    )  # fmt: skip


@contextlib.contextmanager
def _for_graphs_alone() -> Iterator[None]:
    """Inside, for a trace of which only the graph is wanted, none of the modules that ``torch.export`` makes on its way
    is compiled to Python before it is called, and garbage is collected more rarely than for a few objects."""
    graphs: Any = fx.GraphModule
    thread, compiled, often = threading.get_ident(), graphs.recompile, gc.get_threshold()

    def when_called(module: fx.GraphModule) -> Any:
        if threading.get_ident() != thread:
            return compiled(module)
        cls: Any = type(module)  # each has a class of its own
        cls.forward = _compile_and_call
        return None

    def _compile_and_call(module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        compiled(module)
        return module.forward(*args, **kwargs)

    graphs.recompile = when_called
    if often[0]:
        gc.set_threshold(max(often[0], 20_000), *often[1:])
    try:
        yield
    finally:
        graphs.recompile = compiled
        gc.set_threshold(*often)


def distinct(leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Inputs for a trace, which would take one tensor given twice (``labels=input_ids``) for one input."""
    first: dict[int, int] = {}
    return tuple(x if first.setdefault(id(x), i) == i else x.detach().clone() for i, x in enumerate(leaves))


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
