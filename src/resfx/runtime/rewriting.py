"""A rewrite that can be repeated: captured, found, rewritten and folded again for calls not seen before."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from resfx._torch import held_modules, hold_modules, outside_of_traces
from resfx.errors import VariantError
from resfx.passes.capture.calls import Call, bind, flatten_call
from resfx.passes.capture.clone import class_before
from resfx.passes.capture.guards import Length, shape_guard
from resfx.passes.capture.source import Source, without_self
from resfx.passes.find.detect import find_sites
from resfx.passes.find.graph import Capture, hint
from resfx.passes.fold import Code, Plan, Region, Shared, fold, from_function, only_handed_on
from resfx.passes.fold.guard import Always, Guard, autocast_state, names_in
from resfx.passes.fold.plan import is_size
from resfx.passes.fold.values import bound
from resfx.passes.preserve import TRACING
from resfx.passes.scopes.application import Application
from resfx.passes.scopes.apply import apply_method
from resfx.passes.scopes.surgery import Surgery
from resfx.report.report import Report

from .units import Unit, levels_of, make_unit
from .wrapped import find_below, unwrapped


@dataclass(eq=False)
class Rewriting:
    """What was done to a model. It holds no parameters; copies of the model share it.

    Attributes:
        source: where captures come from.
        applications: the methods and what each claimed.
        shared: generated functions.
        first: what the first capture found.
        captures: paths of the modules captured since, in order.
    """

    source: Source
    applications: list[Application]
    shared: Shared = field(default_factory=Shared)
    first: Report | None = None
    captures: list[str] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewriting:
        memo[id(self)] = self
        return self

    def begin(self, tree: nn.Module, call: Call | None) -> None:
        """Capture a model for the first time and let its modules run the rewritten code."""
        capture = self.source.capture(tree, call)
        self.first = rewrite_capture(capture, tree, self.applications)
        self._fold(capture, tree, "", tree)
        self.source = replace(self.source, model=nn.Module())  # the model that was passed in may go

    def make(self, module: nn.Module, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Code:
        """Code for a call of a unit that was not seen before.

        Raises:
            CaptureError: if the call cannot be traced.
            VariantError: if the rewrite cannot be repeated on it.
        """
        with TRACING, outside_of_traces():
            given = type(module)._resfx_bind(module, *args, **kwargs)  # type: ignore[attr-defined]
            for guard, code in unit.variants:  # another thread may have made it
                if guard.fits(module, given):
                    return code
            if self.source.shared:
                self._again(module)
                return unit.variants[-1][1]
            signature = without_self(inspect.signature(class_before(module).forward))
            known = unwrapped(module, unit.path)
            source = replace(self.source, model=known, cls=class_before(module), signature=signature)
            self._learn(unit, given)
            call = flatten_call(bind(signature, args, kwargs), self.source.varying)
            call.given, call.leaves = call.leaves, [_example(leaf) for leaf in call.leaves]
            capture = source.capture(known, call)
            tree = _part(known, unit)
            rewrite_capture(capture, tree, self._within(unit.path))
            before = list(unit.variants)
            self._fold(capture, tree, unit.path, module)
            self.captures.append(unit.path)
            name = unit.path or type(module).__name__
            if not unit.variants or unit.variants[-1] in before:
                raise VariantError(
                    f"this call needs another capture of {name}, whose own code is not rewritten in it",
                    "modules that it handed states to are not where they were",
                    "change the tree before resfx.rewrite, or rewrite resfx.original(model) again",
                )
            made, code = unit.variants[-1]
            assert isinstance(made, Guard)
            if unlike := made.differs(module, given):
                raise VariantError(
                    f"a capture of {name} does not fit the call it was made for",
                    f"the {unlike} that was traced is another", "report it, with the call",
                )  # fmt: skip
            return code

    def _again(self, module: nn.Module) -> None:
        """Another capture of a model that is traced without inputs: its training mode changed."""
        capture = self.source.capture(module, None)
        rewrite_capture(capture, module, self.applications)
        self._fold(capture, module, "", module)

    def refuse_without_code(self, verb: str) -> None:
        """Raise for a graph that the user captured.

        Raises:
            VariantError: naming what was asked.
        """
        if self.source.shared:
            raise VariantError(f"cannot {verb} a captured graph", "it has no code of its own to go back to",
                               "keep the graph that was passed to rewrite")  # fmt: skip

    def _learn(self, unit: Unit, given: dict[str, Any]) -> None:
        """Integers of stateful arguments that were seen to vary become inputs."""
        for guard, _ in unit.variants:
            self.source.varying |= guard.varied(given)

    def _within(self, path: str) -> list[Application]:
        """The recipe with only the adds inside a module, called as they are called from there."""
        if not path:
            return self.applications
        found = []
        for application in self.applications:
            part = application.within(path)
            if part is None:
                continue
            scope = application.method.scope
            # Layers that a route reads have no module of their own.
            known = application.seen if scope == "route" else application.claimed or ()
            inside = {c.name: c.is_within(path) for c in known}
            across = scope in ("depth", "wide", "route")
            for stream in self.first.streams if self.first and across else ():
                members = [inside[s.name] for s in stream.sites if s.name in inside]
                if any(members) and not all(members):
                    raise VariantError(
                        f"cannot run {path!r} alone", f"{application.method.label} reads states across its border",
                        "call the module around it",
                    )  # fmt: skip
            found.append(part)
        return found

    def _fold(self, capture: Capture, tree: nn.Module, prefix: str, module: nn.Module) -> None:
        if not capture.calls:  # a graph that the user already has
            code = Code(_of_a_graph(capture.graph, type(module).__name__), (), str(capture.graph))
            flags = tuple(m.training for m in module.modules()) if self.source.traced else None
            unit = make_unit(module, prefix, self, _bank(module))
            unit.native = False
            unit.add(Always(flags), code)
            return
        plan, codes = fold(capture, tree, prefix, self.shared)
        self.hand_out(plan, codes, tree, prefix, module)

    def hand_out(self, plan: Plan, codes: dict[Region, Code], tree: nn.Module, prefix: str, module: nn.Module) -> None:
        """Give modules the code of their calls; equal blocks share one guard and one code, which a cache then holds."""
        alike: list[tuple[Guard, Code]] = []
        for region, code in codes.items():
            assert region.path is not None
            path = ".".join(p for p in (prefix, region.path) if p)
            unit = make_unit(find_below(module, prefix, region.path), path, self, _bank(module))
            unit.native = unit.native and not plan.acts_in(region)
            if not region.passed_on:
                guard = guard_of(plan, region, tree.get_submodule(region.path), self.source)
                twins = (t for t in alike if t[1].like(code) and guard.same(t[0]))
                if (twin := next(twins, None)) is None:
                    alike.append(twin := (guard, code))
                unit.add(*twin)
            elif code.function not in unit.told:
                unit.told.append(code.function)


def rewrite_capture(capture: Capture, tree: nn.Module, applications: Sequence[Application]) -> Report:
    """Rewrite a fresh capture by a recipe; the first time the new modules are built into ``tree``."""
    nodes = len(capture.graph.nodes)
    sites, skips, streams = find_sites(capture.graph, tree)
    surgery = Surgery(capture.graph, tree, streams)
    # What acts inside the host's own branches goes first, mixers before routes: what replaces an add reads its result.
    inside = ("sequence", "route")
    order = lambda a: inside.index(a.method.scope) if a.method.scope in inside else len(inside)
    for application in sorted(applications, key=order):
        apply_method(surgery, sites, application)
    capture.graph.lint()
    skips = skips + [s for a in applications for s in a.skips]
    return Report(type(tree).__name__, sites, skips, surgery.streams, nodes, surgery.changes)


def guard_of(plan: Plan, region: Region, module: nn.Module, source: Source) -> Guard:
    """What the code of a unit was made for."""
    own = tuple(region.path.split(".")) if region.path else ()
    generated = [r for r in region.below() if r.generated]
    reads = {w[len(own) :]: v for r in generated for w, v in r.call.reads.items() if w[: len(own)] == own}
    lists = {
        way: names_in(child)
        for r in generated
        for name, child in module.get_submodule(_below(r, own)).named_children()
        for way in [tuple(p for p in (*_below(r, own).split("."), name) if p)]
        if isinstance(child, (nn.ModuleList, nn.ModuleDict))
    }
    free = frozenset(i for i, m in region.enters.items() if only_handed_on(plan, m) and from_function(plan, m))
    # The code's Python may have looked at the sizes of whatever it was handed, though its graph does not show it.
    given = [(i, region.enters[i].meta["val"]) for i in sorted(set(region.enters) - free)]
    tensors = {i: v for i, v in given if isinstance(v, torch.Tensor)}
    objects = [o for o in plan.capture.objects if o.inside is None]
    around = {o.number: o.inside[0] if o.inside else o.number for o in plan.capture.objects}
    place = {leaf: (o.number, i) for o in objects for i, leaf in enumerate(o.leaves)}
    inside = {place[x]: x for r in generated for n in r.nodes for x in n.all_input_nodes if x in place}
    looked = {around[n] for r in generated for n in r.call.looked_into} | {number for number, _ in inside}
    seen = {o.number for o in objects if o.given and o.number in looked}
    inside |= {at: leaf for leaf, at in place.items() if at[0] in seen and isinstance(leaf, fx.Node)}
    values = [*tensors.values(), *(Length(v) if is_size(x) else v for x in inside.values() for v in [x.meta["val"]])]
    return Guard(
        arguments=bound(region.call.given, parameters_of(module)),
        objects={o.number: (o.cls, o.first if o.number in looked else None) for o in objects},
        free=free,
        used=(*tensors, *inside), kinds=tuple((v.dtype, v.device) for v in values),
        shapes=shape_guard(values, plan.capture.known), reads=tuple(reads.items()),
        lists=tuple(lists.items()), autocast=autocast_state(), grad=plan.capture.grad, varying=source.varying,
    )  # fmt: skip


def _below(region: Region, own: tuple[str, ...]) -> str:
    """A call's module as seen from the one that is called ``own``."""
    return ".".join((region.path or "").split(".")[len(own) :])


def parameters_of(module: nn.Module) -> list[inspect.Parameter]:
    """Of a module's own ``forward``, without ``self``."""
    return list(inspect.signature(class_before(module).forward).parameters.values())[1:]


def _example(leaf: torch.Tensor) -> torch.Tensor:
    """A tensor of the same kind to trace with; nothing looks at its numbers."""
    sizes = [hint(size) for size in leaf.shape]
    return torch.zeros([2 if s is None else s for s in sizes], dtype=leaf.dtype, device=leaf.device)


def _bank(module: nn.Module) -> nn.Module:
    levels = module.__dict__.get("_resfx_new")
    return levels[""] if levels else module.get_submodule("resfx")


def _part(module: nn.Module, unit: Unit) -> nn.Module:
    """A unit as a tree of its own: its submodules, and its share of the new modules below ``resfx``."""
    if not unit.path:
        return module
    view: nn.Module = object.__new__(class_before(module))
    view.__dict__.update({k: v for k, v in vars(module).items() if not k.startswith("_resfx")})
    bank = nn.Module()
    for key, level in levels_of(_bank(module), unit.path).items():
        if key:
            bank.add_module(key, level)
    hold_modules(view, {**held_modules(module), "resfx": bank})
    return view


def function_of(graph: fx.Graph) -> Callable[..., Any]:
    """A flat graph as a function of the module tree and the graph's inputs."""
    code = graph.python_code("self")
    filename = f"<resfx graph {id(graph)}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(True), filename)
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, filename, "exec"), scope)
    return scope["forward"]


def _of_a_graph(graph: fx.Graph, cls: str) -> Callable[..., Any]:
    """The forward of a graph that the user has; what its own guards refuse is said in words."""
    run = function_of(graph)

    def forward(self: nn.Module, new: Any, handed: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return run(self, *args, **kwargs)
        except AssertionError as error:
            if "Guard failed" not in str(error):
                raise
            raise VariantError(
                f"this {cls} is a captured program that does not accept these inputs", str(error),
                "export it with dynamic_shapes for the sizes that vary, or rewrite the model itself",
            ) from error  # fmt: skip

    return forward
