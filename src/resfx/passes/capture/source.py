"""Anything a user may hold (module, ``GraphModule``, ``ExportedProgram``, ``.pt2``) as a source of captures."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from resfx._torch import compiled_from, fake_mode, share_codegen, tracing
from resfx.errors import CaptureError, ModelError
from resfx.report.progress import step
from resfx.runtime.huggingface import renamed_arguments

from .calls import Call, bind, by_new_names, flatten_call
from .clone import clone_tree, without_self
from .diagnose import SIZE_AS_KEY, quiet_tracing
from .inputs import Example, example_of, outside_inference_mode
from .marking.modes import is_mode
from .marking.watch import Watch, owned_in
from .split import is_split, refuse_split
from .trace import Capture, capture_call
from .trial import try_call
from .untraced import alike, observe


@dataclass
class Source:
    """Where graphs of a model come from.

    Attributes:
        model: the user's module.
        cls: the class whose ``forward`` is captured.
        signature: its signature, without ``self``.
        example: arguments for the first capture, or ``None`` where a fixed graph needs none.
        fixed: a graph the user already has; it serves every call.
        traced: the graph comes from ``torch.fx.symbolic_trace``: any call, but one graph per training mode.
        frozen: the graph has types and devices as literals.
        varying: integer fields of stateful arguments seen to vary between calls.
        as_eager: code that behaves otherwise while it is exported is captured as it behaves in eager mode.
    """

    model: nn.Module
    cls: type
    signature: inspect.Signature
    example: Example | None
    fixed: fx.Graph | None = None
    traced: bool = False
    frozen: bool = False
    varying: set[tuple[type, str]] = field(default_factory=set)
    as_eager: bool = False

    @property
    def shared(self) -> bool:
        """Whether one graph serves calls of every form."""
        return self.traced or self.fixed is not None

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Take the arguments of one call apart.

        Raises:
            InputError: if they do not fit the signature, as the model itself would.
            CaptureError: if one of them holds tensors and cannot be taken apart.
        """
        kwargs = by_new_names(renamed_arguments(self.cls.forward), kwargs)  # type: ignore[attr-defined]
        return flatten_call(bind(self.signature, args, kwargs), self.varying)

    def try_out(self, tree: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the model itself on an example, before anything is made of it.

        Raises:
            ModelError: if it raises: its own error, where, and what to do.
            InputError: if the arguments do not fit, or the example has no rows.
            CaptureError: if it writes into a list or dict that it is given.
        """
        self._try(tree, self.call(args, kwargs))

    def _try(self, tree: nn.Module, call: Call) -> None:
        """Raise what the model raises, unless it runs where gradients are recorded: a hook on one needs them."""
        try:
            try_call(tree, self.cls, self.signature, call)
        except ModelError as error:
            if not torch.is_grad_enabled():
                raise
            try:
                try_call(tree, self.cls, self.signature, call, grad=True)
            except ModelError:
                raise error from error.__cause__

    @step("capturing a call of {self.cls.__name__}")
    def capture(self, tree: nn.Module, call: Call | None) -> Capture:
        """The graph of one call of ``tree`` (the model, a part of it, or a copy). The tree is not touched.

        Raises:
            ModelError: if the model itself raises on this call.
            CaptureError: if it runs and cannot be traced.
        """
        with tracing(), outside_inference_mode(), quiet_tracing():
            try:
                return self._captured(tree, call)
            except CaptureError as error:
                refuse_split(tree, self.cls, error)
                if call is not None:
                    self._try(tree, call)
                    if torch.is_grad_enabled():
                        try_call(tree, self.cls, self.signature, call, grad=True)
                raise

    def _captured(self, tree: nn.Module, call: Call | None) -> Capture:
        if self.fixed is not None:
            return Capture(copy_graph(self.fixed), [])
        if self.traced:
            return Capture(_trace(clone_tree(tree)), [])
        assert call is not None
        # Code that knows it is traced may take a way that fails, or that eager mode does not take.
        ways: list[tuple[Any, bool]] = [((), True), (("exporting", "compiling"), True)]
        if self.as_eager:
            ways.insert(0, (("exporting",), True))
        if not torch.is_grad_enabled():  # some kernels exist without gradients only
            ways.append(((), False))
        errors: dict[tuple[Any, bool, bool], CaptureError] = {}
        # Layers that are split over processes: whole weights, or the parts that go with the parts of a cache.
        for parts in (False, True) if any(map(is_split, tree.modules())) else (False,):
            for denied, grad in ways:
                try:
                    return capture_call(clone_tree(tree, parts), self.signature, call, denied, grad)
                except CaptureError as error:
                    errors[denied, grad, parts] = error
        failed = errors[(), True, False]
        if failed.found.startswith(SIZE_AS_KEY):  # in a table: one graph for each size
            return capture_call(clone_tree(tree), self.signature, call, *ways[0], fixed=True)
        taken = self._taken_whole(tree, call, ways[0], failed)
        if taken is None:
            raise failed
        return taken

    def _taken_whole(self, tree: nn.Module, call: Call, way: tuple[Any, bool], failed: CaptureError) -> Capture | None:
        """A capture without the inside of modules that no trace can follow; ``None`` where that cannot be."""
        why: dict[str, str] = {}
        error = failed
        while error.inside and error.inside not in why:
            shell = clone_tree(tree)
            why |= dict.fromkeys(alike(shell, error.inside), error.found)
            untraced = observe(tree, self.signature, call, why)
            if untraced is None:
                return None
            try:
                return capture_call(shell, self.signature, call, *way, untraced)
            except CaptureError as another:
                error = another
        return None


def source_of(model: Any, args: Any = None, kwargs: Any = None) -> Source:
    """Find out what ``model`` is and which inputs to capture it with.

    Args:
        args, kwargs: as :func:`resfx.passes.capture.inputs.example_of` takes them.

    Raises:
        CaptureError: if it is none of the things that can be captured, or inputs are needed and missing.
        InputError: if the inputs come in a form that is not taken.
    """
    if isinstance(model, (str, os.PathLike)):
        model = _load_program(model)
    if isinstance(model, torch.export.ExportedProgram):
        if args is None and kwargs is None and model.example_inputs:
            args, kwargs = model.example_inputs
        model = model.module()
    if not isinstance(model, nn.Module):
        if isinstance(model, type) and issubclass(model, nn.Module):
            raise CaptureError(
                f"cannot capture {model.__name__}", "it is a class, not a module", f"{model.__name__}(...)"
            )
        raise CaptureError(
            f"cannot capture a {type(model).__name__}", "it is not a torch module",
            "pass an nn.Module, a torch.fx.GraphModule, an ExportedProgram or the path of a .pt2 file",
        )  # fmt: skip
    _refuse_wrapper(model)
    _refuse_lazy(model)
    _refuse_inference(model)
    example = example_of(args, kwargs)
    if isinstance(model, fx.GraphModule):
        _propagate_shapes(model, example)
        signature = inspect.signature(type(model).forward)
        frozen = any("aten" in str(n.target) for n in model.graph.nodes)
        return Source(model, type(model), without_self(signature), example, model.graph, frozen=frozen)
    signature = without_self(inspect.signature(type(model).forward))
    dummy: Any = getattr(model, "dummy_inputs", None)
    if example is None and isinstance(dummy, dict):
        example = example_of(None, dummy)
    if example is None:
        return Source(model, type(model), signature, None, traced=True)
    return Source(model, type(model), signature, example)


def _refuse_wrapper(model: nn.Module) -> None:
    """A module around the one that has the residual stream: what it adds would be lost in a graph."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    found, remedy = "", ""
    if isinstance(model, torch.jit.ScriptModule):
        found, remedy = "TorchScript has no Python code to capture", "pass the module it was scripted from"
    elif isinstance(model, parallel):
        found, remedy = "it spreads another module over devices", "rewrite its .module, then wrap the result"
    elif compiled_from(model) is not None:
        found, remedy = "it is compiled already", "rewrite its ._orig_mod, then torch.compile the result"
    if found:
        raise CaptureError(f"cannot capture a {type(model).__name__}", found, remedy)


def _refuse_lazy(model: nn.Module) -> None:
    made = [*model.named_parameters(), *model.named_buffers()]
    if (name := next((n for n, t in made if nn.parameter.is_lazy(t)), None)) is not None:
        raise CaptureError(
            f"cannot capture this {type(model).__name__}", f"{name} has no shape before the first call",
            "call the model once, model(*args), and pass it then",
        )  # fmt: skip


def _refuse_inference(model: nn.Module) -> None:
    made = next((n for n, p in model.named_parameters() if p.is_inference()), None)
    if made is not None:
        raise CaptureError(
            f"cannot capture this {type(model).__name__}",
            f"{made} was made under torch.inference_mode: nothing can be differentiated through it",
            "build the model outside torch.inference_mode, or torch.save and torch.load its state_dict",
        )  # fmt: skip


def _load_program(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    if not os.path.exists(path):
        raise CaptureError(f"cannot load {path}", "there is no such file", "pass the path of a .pt2 file")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CaptureError(
            f"cannot load {path}", f"{type(error).__name__}: {error}", "save it with torch.export.save"
        ) from error


def _trace(model: nn.Module) -> fx.Graph:
    """The graph of a model for calls of any form. It has the mode of no module: each is called in that which it has.

    Args:
        model: a copy of the user's, which it may change.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    set_in_forward: list[str] = []

    def wrote(value: Any, key: Any, name: str, before: Any) -> None:
        if is_mode(key, name) and value.training != modes[key.paths[0]]:
            set_in_forward.append(key.paths[0])

    watch = Watch(lambda key, name, value: None, lambda key, bound: bound, wrote)
    try:
        for value, owned in owned_in(model):
            watch.add(value, owned)
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise CaptureError(
            f"cannot capture {type(model).__name__} without inputs",
            f"it is not fx-traceable ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            "pass args=(...) or kwargs={...}: example inputs as the model's forward takes them",
        ) from error
    finally:
        watch.end()
    if set_in_forward:
        raise CaptureError(
            f"cannot capture {type(model).__name__} without inputs",
            f"forward sets the mode of {set_in_forward[0] or 'the model'}, which such a graph does not",
            "pass args=(...) or kwargs={...} to resfx.rewrite: example inputs as the model's forward takes them",
        )
    return graph


def _propagate_shapes(module: fx.GraphModule, example: Example | None) -> None:
    if example is None or any("val" in n.meta for n in module.graph.nodes):
        return
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    signature = without_self(inspect.signature(type(module).forward))
    bind(signature, *example)  # says what does not fit
    try:
        FakeTensorProp(module, fake_mode()).propagate(*signature.bind(*example[0], **example[1]).args)
    except Exception as error:
        raise CaptureError(
            f"cannot run {type(module).__name__} on the inputs given", f"{type(error).__name__}: {error}",
            "pass args=(...) as the graph's placeholders take them",
        ) from error  # fmt: skip


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A private copy of a graph the user already has; its outputs keep their structure."""
    copy = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    output = copy.graph_copy(graph, env)
    copy.output(output)
    share_codegen(copy, graph)
    for node in list(copy.nodes):
        name = str(getattr(node.target, "__name__", node.target))
        if name.startswith("_assert_tensor_metadata"):
            copy.erase_node(node)
    return copy
