"""One call of a model as a flat program for export: tensors in, tensors out, each with a readable name."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from resfx._torch import tracing
from resfx.errors import ExportError
from resfx.ops.register import opaque_operators
from resfx.passes.capture.calls import Call, unbind
from resfx.passes.capture.clone import copy_sharing_parameters
from resfx.passes.capture.inputs import Named, Positional, example_of
from resfx.passes.capture.source import Source, source_of
from resfx.passes.capture.structure import Flattener, Template, named_parts
from resfx.passes.capture.trace import distinct, dynamic_axes, image_leaves
from resfx.runtime.huggingface import renamed_arguments
from resfx.runtime.module import Rewritten

from .flat import FlatCall, flat_call

Axes = Mapping[str, Mapping[int, str]]


@dataclass
class Exportable:
    """A model and one call pattern of it.

    Attributes:
        tree: the model in eval mode, a copy over the same parameters.
        call: the example, flattened.
        variant: the rewritten graph of that call, as one function.
        inputs, outputs: names of the tensors that go in and come out.
        positions: which leaves of a result the outputs are.
    """

    source: Source
    tree: nn.Module
    call: Call
    variant: FlatCall
    inputs: list[str]
    outputs: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def eager(self, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the model itself gives for other leaves, called as its user would."""
        given = self.call.arguments([leaf.clone() for leaf in leaves])
        args, kwargs = unbind(self.source.signature, given)
        objects = _objects(given)
        with torch.no_grad():
            result = self.tree(*args, **kwargs)
        flat, _ = _flatten(result, objects)
        return [flat[i] for i in self.positions]

    def traced(self, leaves: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """The same through the captured graph; the first run names the outputs."""
        capture, run = self.variant.capture, self.variant.run
        if self.source.shared:
            args, kwargs = unbind(self.source.signature, self.call.arguments(leaves))
            flat, templates = _flatten(run(self.tree, *args, **kwargs), [])
        else:
            assert capture.output is not None
            flat = list(run(self.tree, *leaves, *capture.constants_in(self.tree)))
            templates = [capture.output, *capture.states]
        roots = ["", *_object_names(self.call.template, self.source)]
        named = [pair for t, root in zip(templates, roots, strict=True) for pair in _names(t, root)]
        named = [(i, _as_ever(name, self.source)) for i, name in named]
        self.positions = [i for i, _ in named if isinstance(flat[i], torch.Tensor)]
        self.outputs = _unlike(self.inputs, [name for i, name in named if i in self.positions])
        return [flat[i] for i in self.positions]


@tracing()
def flatten_model(model: Any, args: Positional | None, kwargs: Named | None, fused: bool = True) -> Exportable:
    """Capture one call of a rewritten module, or of any other model, in eval mode. ``model`` is not changed.

    Args:
        fused: whether fused operators stay one node each.

    Raises:
        ExportError: if there is no example to export.
        CaptureError: if the model cannot be captured.
    """
    rewritten = isinstance(model, Rewritten)
    source = model._resfx.source if rewritten else source_of(model, args, kwargs)
    example = example_of(args, kwargs) or source.example
    if example is None:
        raise ExportError(
            f"cannot export {type(model).__name__} without example inputs", "the model was captured without any",
            "pass args=(...) or kwargs={...} as its forward takes them",
        )  # fmt: skip
    tree = copy_sharing_parameters(model if rewritten else source.model)
    if not source.frozen:
        tree.eval()
    source.try_out(tree, *example)
    call = source.call(*example)
    call.leaves = _two_rows(call.leaves)
    if isinstance(tree, Rewritten) and source.as_eager:
        # What the model computes instead while it is exported is what export targets know.
        source = dataclasses.replace(source, as_eager=False)
        variant = flat_call(source.capture(tree, call), tree, tree._resfx.applications)
    elif isinstance(tree, Rewritten):
        variant = flat_call(source.capture(tree, call), tree, tree._resfx.applications)
    else:
        with _operators(fused):  # the model may call them itself
            variant = flat_call(source.capture(tree, call), tree, [])
    inputs = dict(_names(call.template, ""))
    return Exportable(source, tree, call, variant, _plain(call, source, inputs))


@tracing()
def trace(model: Exportable, dynamic: bool | Axes, fused: bool) -> torch.export.ExportedProgram:
    """The flat program of a model.

    Args:
        dynamic: ``True`` for every axis that the model leaves open, ``False`` for none, or axis names by input.
        fused: as for :func:`flatten_model`.
    """
    shell = _Shell(model)
    images = image_leaves(model.call)
    shapes = tuple(
        _axes(name, leaf, dynamic, i in images)
        for i, (name, leaf) in enumerate(zip(model.inputs, model.call.leaves, strict=True))
    )
    with torch.no_grad(), warnings.catch_warnings(), _operators(fused):
        warnings.simplefilter("ignore")
        return torch.export.export(shell, distinct(model.call.leaves), dynamic_shapes=(shapes,), strict=False)


class _Shell(nn.Module):
    def __init__(self, model: Exportable) -> None:
        super().__init__()
        self.tree = model.tree
        self._model = model
        self.train(model.tree.training)

    def forward(self, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen = {id(leaf) for leaf in leaves}
        results = []
        for value in self._model.traced(leaves):
            # A graph output has one name: what comes out twice, or as it went in, is copied.
            results.append(value.clone() if id(value) in seen else value)
            seen.add(id(value))
        return tuple(results)


def _operators(fused: bool) -> contextlib.AbstractContextManager[None]:
    return opaque_operators() if fused else contextlib.nullcontext()


def _axes(name: str, leaf: torch.Tensor, dynamic: bool | Axes, image: bool) -> dict[int, Any] | None:
    if isinstance(dynamic, Mapping):
        return dict.fromkeys(dynamic.get(name, {}), torch.export.Dim.AUTO) or None
    return dynamic_axes(leaf, image) if dynamic else None


def _two_rows(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Leaves with a batch of one repeated: a trace takes a size of 1 for a constant."""
    if leaves and all(leaf.dim() and leaf.shape[0] == 1 for leaf in leaves):
        return [torch.cat([leaf, leaf]) for leaf in leaves]
    return leaves


def _flatten(result: Any, objects: list[Any]) -> tuple[list[Any], list[Template]]:
    flat = Flattener(known=objects)
    templates = [flat.flatten(result), *[flat.state(o) for o in objects]]
    return flat.leaves, templates


def _objects(given: dict[str, Any]) -> list[Any]:
    flat = Flattener()
    flat.flatten(given)
    return flat.objects


def _names(template: Template, root: str) -> Iterator[tuple[int, str]]:
    """``(leaf, name)`` of every tensor of a template; names are dotted paths."""
    kind = template[0]
    if kind == "tensor":
        yield template[1], root or "output"
        return
    if kind == "int":
        yield template[1], root
        return
    for key, part in named_parts(template):
        yield from _names(part, f"{root}.{key}" if root else key if not key.isdigit() else f"output_{key}")


def _object_names(template: Template, source: Source, root: str = "") -> list[str]:
    """Paths of the stateful objects of a call, in the order they were met."""
    if template[0] == "object":
        return [root, *[n for k, part in named_parts(template) for n in _object_names(part, source, f"{root}.{k}")]]
    return [n for k, part in named_parts(template) for n in _object_names(part, source, f"{root}.{k}" if root else k)]


def _plain(call: Call, source: Source, names: dict[int, str]) -> list[str]:
    """Input names without the name of ``**kwargs`` itself."""
    packed = tuple(f"{n}." for n, p in source.signature.parameters.items() if p.kind is p.VAR_KEYWORD)
    found = [names[i] for i in range(len(call.leaves))]
    return [_as_ever(next((n.removeprefix(p) for p in packed if n.startswith(p)), n), source) for n in found]


def _as_ever(name: str, source: Source) -> str:
    """A name that files keep when the host's argument is renamed: what reads them need not know the host's version."""
    former = {new: old for old, (new, _) in renamed_arguments(source.cls.forward).items()}  # type: ignore[attr-defined]
    root, dot, rest = name.partition(".")
    return former.get(root, root) + dot + rest


def _unlike(taken: list[str], names: list[str]) -> list[str]:
    """Output names that no input has: a cache comes in as ``past...`` and goes out as ``present...``."""
    return [n if n not in taken else n.replace("past", "present", 1) if "past" in n else f"new_{n}" for n in names]
