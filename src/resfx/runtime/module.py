"""The module handed back: the user's own class, whose ``forward`` runs a rewritten graph.

A graph is good for one *variant* of a call: training or eval, which arguments are given, constants, types. Each
variant is captured when it is first needed and rewritten by the same recipe, onto the same new modules. Graphs
hold no tensors: they read parameters from the module tree by name at every call.
"""

from __future__ import annotations

import copy
import functools
import inspect
import linecache
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from resfx._torch import held_modules, held_parameters
from resfx.errors import SaveError, VariantError
from resfx.passes.capture.calls import Call, bind, flatten_call
from resfx.passes.capture.source import Source
from resfx.passes.capture.structure import Template, build, describe, named_parts, restore, varied
from resfx.passes.find.detect import find_sites
from resfx.passes.find.graph import Capture
from resfx.passes.fold.regroup import block_names
from resfx.passes.preserve import TRACING
from resfx.passes.scopes.application import Application
from resfx.passes.scopes.apply import apply_method
from resfx.passes.scopes.surgery import Surgery
from resfx.report.report import Report

from .blocks import Blocks, never_traced
from .huggingface import is_recomputing
from .parts import part_of
from .states import thread_states


@dataclass(eq=False)
class Variant:
    """One captured, rewritten graph and the calls it is good for."""

    capture: Capture
    run: Callable[..., Any]
    report: Report
    template: Template | None = None
    mode: tuple[Any, ...] = ()
    settings: tuple[Any, ...] = ()

    @functools.cached_property
    def blocks(self) -> list[str]:
        """Names of the repeated blocks of its streams."""
        return block_names(self.report.sites)

    def fits(self, call: Call, mode: tuple[Any, ...], settings: tuple[Any, ...]) -> bool:
        """Whether the graph was captured for calls like this one; no ``settings`` fit any."""
        same = self.mode == mode and (not settings or settings == self.settings)
        return same and self.template == call.template and self.capture.accepts(call.leaves)


MOST = 32
"""Variants that a module keeps: more say that something varies with every call."""


@dataclass(eq=False)
class Runtime:
    """The recipe of a rewritten module and its variants. Shared by copies: it holds no parameters."""

    source: Source
    applications: list[Application]
    variants: list[Variant] = field(default_factory=list)
    first: Report | None = None
    parts: dict[str, Runtime] = field(default_factory=dict)
    blocks: Blocks = field(default_factory=Blocks)

    def __deepcopy__(self, memo: dict[int, Any]) -> Runtime:
        return Runtime(self.source, self.applications, list(self.variants), self.first, blocks=self.blocks.copy())

    def call(self, tree: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call on the variant it fits, capturing one if there is none."""
        if self.source.shared:
            return self._run_shared(tree, args, kwargs)
        call = flatten_call(bind(self.source.signature, args, kwargs), self.source.varying)
        variant = self._find(tree, call)
        if variant is None:
            variant, call = self._add(tree, args, kwargs)
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            leaves = self.blocks.runner(variant, tree)(tree, *call.leaves, *variant.capture.constants)
        capture = variant.capture
        assert capture.output is not None
        for value, state in zip(call.objects, capture.states, strict=True):
            restore(value, state, leaves, call.objects)
        return build(capture.output, leaves, call.objects)

    def variant_of(self, tree: nn.Module, call: Call) -> Variant:
        """The variant that a call fits, captured if there is none; it is not run."""
        if self.source.shared:
            return self._shared(tree)
        found = self._find(tree, call)
        if found is None:
            found = realise(tree, self.source.capture(tree, call), self.applications)
            if not found.capture.accepts(call.leaves):
                found.capture.accepts = _exactly(call.leaves)
            self.adopt(found, tree, call)
        return found

    def adopt(self, variant: Variant, tree: nn.Module, call: Call | None) -> None:
        """Take in the variant that a rewrite was made from."""
        if call is None:
            variant.mode = _flags(tree)
        else:
            variant.template, variant.mode, variant.settings = call.template, _mode(tree, call), _settings(tree)
        self.first = self.first or variant.report
        if len(self.variants) >= MOST:
            self._forget_oldest(tree, variant)
        self.variants.append(variant)

    def _forget_oldest(self, tree: nn.Module, variant: Variant) -> None:
        old, new = self.variants[-1].template, variant.template
        parts = dict(named_parts(old)) if old else {}
        names = [str(n) for n, part in named_parts(new) if parts.get(n) != part] if new else []
        self.blocks.forget(self.variants.pop(0))
        warnings.warn(
            f"{_name(tree)} has been captured {MOST} times: {', '.join(names) or 'a size, a type or a setting'} differs"
            " from call to call. Captures are dropped, oldest first; pass what varies as a tensor",
            stacklevel=2,
        )

    def _run_shared(self, tree: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.blocks.runner(self._shared(tree), tree)(tree, *args, **kwargs)
        except AssertionError as error:
            if "Guard failed" not in str(error):
                raise
            raise VariantError(
                f"this {type(tree).__name__} is a captured program that does not accept these inputs", str(error),
                "export it with dynamic_shapes for the sizes that vary, or rewrite the model itself",
            ) from error  # fmt: skip

    def _shared(self, tree: nn.Module) -> Variant:
        """The variant of a graph that serves every call: one, or one per training mode where the model is traced."""
        flags = _flags(tree)
        for variant in self.variants:
            if variant.mode == flags or not self.source.traced:
                return variant
        return self._add_shared(tree)

    @never_traced
    def _add_shared(self, tree: nn.Module) -> Variant:
        with TRACING:
            variant = realise(tree, self.source.capture(tree, None), self.applications)
            self.adopt(variant, tree, None)
            return variant

    def _find(self, tree: nn.Module, call: Call) -> Variant | None:
        # A compiled call takes the settings it was traced with, as torch.compile does of any config.
        settings = () if torch.compiler.is_dynamo_compiling() else _settings(tree)
        mode = _mode(tree, call)
        for variant in self.variants:
            if variant.fits(call, mode, settings):
                return variant
        return None

    @never_traced
    def _add(self, tree: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Variant, Call]:
        with TRACING:  # another thread may have made it meanwhile
            call = self.source.call(args, kwargs)
            mode = _mode(tree, call)
            for variant in self.variants:
                if variant.mode == mode and variant.template is not None:
                    self.source.varying |= varied(variant.template, call.template) or set()
            call = self.source.call(args, kwargs)
            return self.variant_of(tree, call), call


def realise(tree: nn.Module, capture: Capture, applications: Sequence[Application]) -> Variant:
    """Rewrite a fresh capture by a recipe; on a first capture the new modules are built into ``tree``."""
    nodes = len(capture.graph.nodes)
    sites, skips, streams = find_sites(capture.graph, tree)
    surgery = Surgery(capture.graph, tree, streams)
    # Mixers over positions go first: they act on the host's own branches, and what replaces an add reads their result.
    for application in sorted(applications, key=lambda a: a.method.scope != "sequence"):
        apply_method(surgery, sites, application)
    thread_states(capture, tree)
    capture.graph.lint()
    skips = skips + [s for a in applications for s in a.skips]
    report = Report(_name(tree), sites, skips, surgery.streams, nodes, surgery.changes)
    return Variant(capture, function_of(capture.graph), report)


def function_of(graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a function of the module tree and the graph's inputs."""
    code = graph.python_code("self")
    filename = f"<resfx graph {id(graph)}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(True), filename)
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, filename, "exec"), scope)
    return scope["forward"]


def _mode(tree: nn.Module, call: Call) -> tuple[Any, ...]:
    """What else a capture bakes in: training flags, autocast, types and devices of the inputs."""
    kinds = tuple([(leaf.dtype, leaf.device) for leaf in call.leaves])
    cast = tuple([(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)])
    return _flags(tree), kinds, cast, tree.training and is_recomputing(tree)


def _settings(tree: nn.Module) -> tuple[Any, ...]:
    """The plain values of the model's ``config``: its forward may read them, so a change is another capture."""
    values = vars(config) if hasattr(config := getattr(tree, "config", None), "__dict__") else {}
    return tuple([(k, v) for k, v in values.items() if isinstance(v, (bool, int, float, str)) or v is None])


def _flags(tree: nn.Module) -> tuple[bool, ...]:
    flags = tuple([m.training for m in tree.modules()])
    return flags if any(flags) and not all(flags) else flags[:1]


def _exactly(leaves: Sequence[torch.Tensor]) -> Callable[[Sequence[torch.Tensor]], bool]:
    shapes = [tuple(leaf.shape) for leaf in leaves]
    return lambda given: [tuple(leaf.shape) for leaf in given] == shapes


def _name(tree: nn.Module) -> str:
    return type(tree).__name__


class Rewritten:
    """What every rewritten module is beside its own class.

    The class name stays the user's, so that ``save_pretrained``, ``generate`` and ``isinstance`` see what they know.
    """

    _resfx: Runtime

    @property
    def report(self) -> Report:
        """What was found and changed in the first variant."""
        report = self._resfx.first
        assert report is not None
        bank = held_modules(self).get("resfx")  # type: ignore[arg-type]
        report.new_parameters = (
            {f"resfx.{n}": p.numel() for n, p in bank.named_parameters()} if bank is not None else {}
        )
        return report

    @property
    def variants(self) -> list[str]:
        """A line for each call pattern captured so far."""
        return [describe(v.template) if v.template else "any" for v in self._resfx.variants]

    def new_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the rewrite added, by name: for an optimizer group of their own."""
        return {f"resfx.{n}": p for n, p in self.get_submodule("resfx").named_parameters()}  # type: ignore[attr-defined]

    def part(self, name: str) -> Any:
        """A submodule that runs the rewritten adds inside it; see :func:`resfx.runtime.parts.part_of`."""
        return part_of(self, name, rewritten_class)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        # Types and devices are literals in a captured graph, and the parameters are still the original model's.
        probe = next((p for p in self.parameters()), torch.empty(0))  # type: ignore[attr-defined]
        moved = fn(probe.detach().new_empty(0))
        if (moved.dtype, moved.device) != (probe.dtype, probe.device):
            if self._resfx.source.frozen:
                raise VariantError(
                    "cannot change the type or device of a captured program", "both are literals in its graph",
                    "move the model before torch.export, or rewrite the model itself",
                )  # fmt: skip
            own_parameters(self)  # type: ignore[arg-type]
            held = self._resfx
            self._resfx = Runtime(held.source, held.applications, first=held.first, blocks=held.blocks.copy())
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __copy__(self) -> Any:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)  # a shallow copy of a module shares its tables of parameters and submodules
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise SaveError(
            "cannot pickle a rewritten module", "its class is made at run time",
            "resfx.save(module, folder), or torch.save(module.state_dict(), path)",
        )  # fmt: skip


def own_parameters(module: nn.Module, copy: bool = False) -> None:
    """Give the module parameter objects of its own, over the same data or a copy of it; ties are kept."""
    twins: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in held_parameters(part).items():
            if parameter is not None:
                if id(parameter) not in twins:
                    data = parameter.data.clone() if copy else parameter.data
                    twins[id(parameter)] = nn.Parameter(data, parameter.requires_grad)
                held_parameters(part)[name] = twins[id(parameter)]


def rewritten_class(cls: type) -> type:
    """A subclass of the user's class whose ``forward`` runs captured graphs."""

    @functools.wraps(cls.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._resfx.call(self, args, kwargs)

    forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    body: dict[str, Any] = {
        "forward": forward,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    if hasattr(cls, "save_pretrained"):
        body["save_pretrained"] = functools.wraps(cls.save_pretrained)(_save_pretrained)
    if hasattr(cls, "get_encoder"):
        body["get_encoder"] = _get_encoder
    if hasattr(cls, "prepare_inputs_for_generation"):
        body["create_masks_for_generate"] = property(_masks_for_generate)
    return type(cls.__name__, (Rewritten, cls), body)


def _save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The user's own, with a word on what a folder of this kind cannot hold."""
    warnings.warn(
        "save_pretrained writes the weights, not what resfx.rewrite did: from_pretrained builds the model without its"
        " methods. resfx.save(model, folder) keeps both",
        stacklevel=2,
    )
    return self._resfx.source.cls.save_pretrained(self, *args, **kwargs)


def _get_encoder(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The encoder that ``generate()`` calls on its own: rewritten where the model's encoder is."""
    encoder = self._resfx.source.cls.get_encoder(self, *args, **kwargs)
    name = next((n for n, m in self.named_modules() if m is encoder), "")
    claimed = [c for a in self._resfx.applications for c in a.claimed or ()]
    return part_of(self, name, rewritten_class) if name and any(c.is_within(name) for c in claimed) else encoder


def _masks_for_generate(self: Any) -> Callable[..., Any]:
    """What ``generate()`` makes of a padding mask for a cache of fixed size: nothing where there are mixers.

    They read which positions are padding; the host's own mask of pairs is made of it in the graph.
    """
    own = hasattr(self._resfx.source.cls, "create_masks_for_generate")
    if own or not any(a.method.scope == "sequence" for a in self._resfx.applications):
        return super(type(self), self).create_masks_for_generate  # type: ignore[misc]
    return lambda attention_mask=None, **call: attention_mask
