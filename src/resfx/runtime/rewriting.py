"""What was done to a model, and how it is done again to a call not seen before: captured, found, rewritten, folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from resfx._torch import held_modules, hold_modules, outside_of_traces, tracing
from resfx.errors import VariantError
from resfx.passes.capture.calls import bind, flatten_call
from resfx.passes.capture.clone import class_before, signature_of
from resfx.passes.capture.marking.record import Act
from resfx.passes.capture.source import Source
from resfx.passes.find.detect import find_sites
from resfx.passes.find.graph import hint
from resfx.passes.fold import Code, Folded, Shared, fold
from resfx.passes.fold.guard import Guard, look_up
from resfx.passes.scopes.application import Application
from resfx.passes.scopes.apply import apply_methods
from resfx.report.progress import warn
from resfx.report.report import Report

from .parallel import refuse_weights_elsewhere
from .saved.pickled import Rewrite
from .told import told_by_keyword
from .units import Unit, levels_of, make_unit
from .wrapped import find_below, unwrapped


@dataclass(eq=False)
class Rewriting:
    """What was done to a model. It holds no parameters; copies of the model share it.

    Attributes:
        source: where captures come from.
        applications: the methods and what each claimed.
        first: what the first capture found and what was done to it.
        rewrite: makes such a model again, in another process.
        shared: generated functions.
        captures: paths of the modules captured since, in order.
        acts: what code of the model does that generated code does not, as far as it was met and judged.
        checked: whether the gradients and numbers of all captures so far were held against the original's;
            ``None`` while they are.
    """

    source: Source
    applications: list[Application]
    first: Report
    rewrite: Rewrite
    shared: Shared = field(default_factory=Shared)
    captures: list[str] = field(default_factory=list)
    acts: set[Act] = field(default_factory=set)
    checked: bool | None = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewriting:
        memo[id(self)] = self
        return self

    def make(self, module: nn.Module, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Code:
        """Code for a call of a unit that was not seen before.

        Raises:
            CaptureError: if the call cannot be traced.
            VariantError: if the rewrite cannot be repeated on it.
        """
        grad = torch.set_grad_enabled(torch.is_grad_enabled())  # outside of inference mode they are on
        with tracing(), outside_of_traces(), grad:
            given = type(module)._resfx_bind(module, *args, **kwargs)  # type: ignore[attr-defined]
            for guard, code in unit.variants:  # another thread may have made it
                if not guard.differs(module, given):
                    return code
            if self.source.shared:
                self._again(module)
                return unit.variants[-1][1]
            signature = signature_of(module)
            known = unwrapped(module, unit.path)
            refuse_weights_elsewhere(module, unit.path or type(module).__name__, sharded=False)
            source = replace(self.source, model=known, cls=class_before(module), signature=signature)
            self._learn(unit, given)
            call = flatten_call(bind(signature, args, kwargs), self.source.varying)
            call.given, call.leaves = call.leaves, [_example(leaf) for leaf in call.leaves]
            capture = source.capture(known, call)
            tree = _part(known, unit)
            apply_methods(capture.graph, tree, find_sites(capture.graph, tree), self._within(unit.path))
            name = unit.path or type(module).__name__
            beside = lambda path: told_by_keyword(look_up(module, path.split("."))) is False
            folded = fold(capture, tree, self.source, self.shared, unit.path, beside, whole=True)
            self._judge(folded, name)
            self._refuse_moved(known, unit.path, {call.path for call in folded})
            self.hand_out(folded, module, unit.path)
            self.captures.append(unit.path)
            made, code = unit.variants[-1]
            assert isinstance(made, Guard)
            if unlike := made.differs(module, given):
                raise VariantError(
                    f"a capture of {name} does not fit the call it was made for",
                    f"the {unlike} that was traced is another",
                    "if modules were put around others or elsewhere since, rewrite resfx.original(model) again; if not,"
                    " report it, with the call",
                )  # fmt: skip
            return code

    def _judge(self, folded: Sequence[Folded], name: str) -> None:
        """Hold what generated code would not do against what the check has seen of it: it was right there, or refused.

        Other calls are not checked themselves: by then the new parameters may have learned.

        Args:
            name: of the module that is called.

        Raises:
            VariantError: if the check passed and what is met now was not in it.
        """
        acts = {act for call in folded for act in call.acts} - self.acts
        if self.checked is not None and not torch.is_grad_enabled():
            of_gradients = {act for act in acts if act.kind == "gradient"}
            for guard in [call.guard for call in folded if of_gradients]:
                if isinstance(guard, Guard):
                    guard.grad = False  # a call with gradients is another capture
            acts -= of_gradients
        if acts and self.checked is not None:
            found = f"{name} {' and '.join(sorted(map(str, acts)))}"
            if self.checked:
                raise VariantError(
                    f"this call needs another capture of {name}, which would lose what its code does",
                    f"{found}; it was not in the calls that resfx.rewrite checked",
                    "an example for resfx.rewrite that does so, to be checked; or do so in a submodule without residual"
                    " adds, which is called as it is",
                )
            warn(f"{found}, which a capture may lose: that was not checked")
        self.acts |= acts

    def _again(self, module: nn.Module) -> None:
        """Another capture of a model that is traced without inputs: its training mode changed."""
        capture = self.source.capture(module, None)
        apply_methods(capture.graph, module, find_sites(capture.graph, module), self.applications)
        self.hand_out(fold(capture, module, self.source, self.shared), module)

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
            for stream in self.first.streams if across else ():
                members = [inside[s.name] for s in stream.sites if s.name in inside]
                if any(members) and not all(members):
                    raise VariantError(
                        f"cannot run {path!r} alone", f"{application.method.label} reads states across its border",
                        "call the module around it",
                    )  # fmt: skip
            found.append(part)
        return found

    def _refuse_moved(self, tree: nn.Module, prefix: str, told: set[str]) -> None:
        """Raise for a module that would run alone where it stands now, and cannot.

        Args:
            tree: as the rewrite knew it, with the path ``prefix`` in the whole model.
            told: paths of the modules that get code.

        Raises:
            VariantError: naming the module, and both places.
        """
        for path, module in tree.named_modules(remove_duplicate=False):
            place = ".".join(p for p in (prefix, path) if p)
            unit = vars(module).get("_resfx_unit")
            if unit is None or unit.native or unit.path == place or path in told:
                continue
            try:
                self._within(unit.path)
            except VariantError as error:
                raise VariantError(
                    f"cannot run what was rewritten as {unit.path!r} as {place!r}",
                    f"modules were inserted, moved or repeated since, and {error.found}",
                    "change the tree before resfx.rewrite, or rewrite resfx.original(model) again",
                ) from error  # fmt: skip

    def hand_out(self, folded: Sequence[Folded], module: nn.Module, prefix: str = "") -> None:
        """Give a module, and those inside it, the code of their calls.

        Args:
            prefix: the module's path in the whole model.
        """
        for call in folded:
            path = ".".join(p for p in (prefix, call.path) if p)
            unit = make_unit(find_below(module, prefix, call.path), path, self, _bank(module))
            unit.native = unit.native and call.handing
            if call.guard is not None:
                unit.add(call.guard, call.code)
            elif not any(code.like(call.code) for code in unit.told):
                unit.told.append(call.code)


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
    view.__dict__.update({k: v for k, v in vars(module).items() if not k.startswith("_resfx") and k != "forward"})
    bank = nn.Module()
    for key, level in levels_of(_bank(module), unit.path).items():
        if key:
            bank.add_module(key, level)
    hold_modules(view, {**held_modules(module), "resfx": bank})
    return view
