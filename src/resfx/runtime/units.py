"""Modules that run generated code: each knows what its code was made for, and has more made when a call needs it.

A unit is a module whose own forward was rewritten. Where nothing is passed to it but its arguments it looks up its
code; modules inside one that share values with it are told what to run by it
(:class:`resfx.passes.fold.values.Handed`). Everything else in the tree is the user's own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from resfx._torch import break_graph, is_compiling
from resfx._torch.compile_time import at_compile_time, local_object, local_value
from resfx.errors import ResfxError, VariantError
from resfx.passes.capture.calls import by_new_names
from resfx.passes.capture.clone import OWN_FORWARD, class_before
from resfx.passes.fold.function import Code
from resfx.passes.fold.guard import Always, Guard
from resfx.passes.fold.values import Handed

from .huggingface import renamed_arguments
from .parallel import accelerates_hook, refuse_split_positions
from .told import takes_keyword, told_beside

MOST = 32
"""Variants that a module keeps: more say that something varies with every call."""


@dataclass(eq=False)
class Unit:
    """What a rewritten module runs. It holds no parameters.

    Attributes:
        path: of the module in the model's tree.
        recipe: what the rewrite was, and how to make code for a call not seen before: ``make(module, unit, args,
            kwargs)``.
        variants: code with what it was made for.
        told: code that calls around it have it run.
        off: how many ask that it is not run.
        beside: what calls around it that are going on tell it, by thread, where no keyword gets through to it.
        native: whether a call that comes with no word from around it runs the module's own code: no method acts in it.
    """

    path: str
    recipe: Any
    variants: list[tuple[Guard | Always, Code]] = field(default_factory=list)
    told: list[Code] = field(default_factory=list)
    off: int = 0
    native: bool = True
    beside: dict[int, Handed] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Unit:
        twin = Unit(self.path, self.recipe, list(self.variants), list(self.told), self.off, self.native)
        memo[id(self)] = twin
        return twin

    @property
    def codes(self) -> list[Code]:
        """All that the module may run: what calls around it chose, then its own, the newest last."""
        return [*self.told, *(code for _, code in self.variants)]

    def code_for(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Code:
        """The code for a call, made if no call like it was seen before."""
        if torch.jit.is_tracing():
            raise VariantError(
                f"cannot run {self.path or type(module).__name__} while torch.jit.trace runs",
                "sizes are tensors there, and generated code reads them as numbers",
                "torch.export.export, or resfx.export.to_onnx",
            )
        if torch.compiler.is_dynamo_compiling():
            at_compile_time()(_make_while_compiling)
        given = type(module)._resfx_bind(module, *args, **kwargs)  # type: ignore[attr-defined]
        for guard, code in self.variants:
            if not guard.differs(module, given):
                return code
        return outside_of_compilers(self._make)(module, args, kwargs)

    def refuse_other(self, code: Code, given: dict[str, Any]) -> None:
        """Refuse arguments that are not what the call around this one gives its module: code has them written in.

        Args:
            code: what that call has it run.
            given: the arguments by name.
        """
        if code.expected is not None and (other := code.expected.differs(given)):
            raise VariantError(
                f"cannot run {self.path} with another {other} than the call around it gives",
                "its code was made for what the model passes; a hook or a wrapper changes it on the way",
                "change it where the model passes it, or change tensors only",
            )

    def add(self, guard: Guard | Always, code: Code) -> None:
        """Code for more calls; the newest comes last, and takes the place of what was made for the same ones."""
        self.variants[:] = [v for v in self.variants if not guard.same(v[0])]
        self.variants.append((guard, code))
        del self.variants[:-MOST]

    def _make(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Code:
        full = len(self.variants) == MOST
        code = self.recipe.make(module, self, args, kwargs)
        if full:
            warnings.warn(
                f"{self.path or type(module).__name__} has been captured {MOST} times: {self._varies()} differs from"
                " call to call. Captures are dropped, oldest first; pass what varies as a tensor",
                stacklevel=6,
            )
        return code

    def _varies(self) -> str:
        (a, _), (b, _) = self.variants[-2:]
        names = [n for n in b.arguments if a.arguments.get(n) != b.arguments[n]]
        return ", ".join(f"argument {n!r}" for n in names) or "a size, a type or an attribute"


def _make_while_compiling(context: Any) -> None:
    """Have code ready for the call that a compiler traces: :meth:`Unit.code_for` is at the point where it looks it up.

    A call with objects in it (a cache) has none that could be looked at: what the trace did to them is not done yet.
    """
    unit, module = local_object(context, "self"), local_object(context, "module")
    try:
        args, kwargs = local_value(context, "args"), local_value(context, "kwargs")
    except LookupError:
        return
    with contextlib.suppress(ResfxError):  # raised again outside of the compiler, which would make it one of its own
        unit.code_for(module, args, kwargs)


_UNSEEN = (
    "resfx: a call not seen before, with an object among its arguments, is captured outside of the compiler; make it"
    " once before torch.compile(fullgraph=True)"
)


def outside_of_compilers(fn: Callable[..., Any], why: str = _UNSEEN) -> Callable[..., Any]:
    """``torch.compiler.disable`` at the time of the call: the decorator itself would import the compiler.

    Args:
        why: what a compiler says that may not go on elsewhere.
    """

    @functools.wraps(fn)
    def outside(*args: Any, **kwargs: Any) -> Any:
        if not is_compiling():
            return fn(*args, **kwargs)
        break_graph(why)
        return torch.compiler.disable(fn)(*args, **kwargs)

    return outside


def forward_of_unit(self: Any, *args: Any, resfx: Handed | None = None, **kwargs: Any) -> Any:
    """``forward`` of every rewritten module."""
    unit: Unit = self._resfx_unit
    if resfx is None and unit.beside:
        resfx = told_beside(unit)
    if resfx is None and (unit.native or unit.off):
        return type(self)._resfx_before.forward(self, *args, **kwargs)
    refuse_split_positions(self, unit.path)
    if resfx is None:
        kwargs = by_new_names(type(self)._resfx_renamed, kwargs)
        code = unit.code_for(self, args, kwargs)
    else:
        code = resfx.code
        unit.refuse_other(code, type(self)._resfx_bind(self, *args, **kwargs))
        if not is_compiling():
            resfx.begin(unit.path)
    new = [look_below(self._resfx_new, way) for way in code.new]
    return code.function(self, new, resfx, *args, **kwargs)


def look_below(levels: dict[str, nn.Module], way: tuple[str, ...]) -> Any:
    """A new module by the way to it: equal blocks have equal ways, or each would compile code of its own."""
    key, *names = way
    module: Any = levels.get(key)
    for name in names:
        module = getattr(module, name, None)
    if module is None:
        raise VariantError(
            "cannot run a rewritten module in this place", f"it runs with {'.'.join(way)}, and the place has none",
            "move modules before resfx.rewrite, or rewrite resfx.original(model) again",
        )  # fmt: skip
    return module


def levels_of(bank: nn.Module, path: str) -> dict[str, nn.Module]:
    """Where a module's own part of the bank begins, by application; the whole bank under no name."""
    levels = {"": bank}
    for key, level in bank.named_children():
        with contextlib.suppress(AttributeError):
            levels[key] = level.get_submodule(path)
    return levels


def binder(cls: type) -> Callable[..., dict[str, Any]]:
    """The arguments of ``cls.forward`` by name, less those that are their defaults: Python binds them by itself."""
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    scope: dict[str, Any] = {}
    shown, starred = ["self"], False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not starred:
            shown.append("*")
        starred = starred or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        if p.default is not p.empty:
            scope[f"default_{p.name}"] = p.default
        shown.append(f"{star}{p.name}" + ("" if p.default is p.empty else f"=default_{p.name}"))
    names = ", ".join(f"{p.name!r}: {p.name}" for p in parameters)
    exec(f"def forward({', '.join(shown)}):\n    return {{{names}}}\n", scope)
    scope["forward"].__qualname__ = cls.forward.__qualname__  # type: ignore[attr-defined]
    return scope["forward"]


@functools.cache
def unit_class(cls: Hashable, run_before: Hashable) -> type:
    """A class whose ``forward`` runs generated code; name and signature stay the user's.

    Args:
        run_before: the ``forward`` of ``cls``, which may be another one by the next rewrite.
    """
    base: Any = cls
    own = getattr(base, "_resfx_before", base)

    @functools.wraps(own.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = forward_of_unit if "_resfx_unit" in vars(self) else own.forward
        return run(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(own.forward)  # type: ignore[attr-defined]
    body = {"forward": forward, "__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__,
            "_resfx_before": own, "_resfx_bind": staticmethod(binder(own)),
            "_resfx_renamed": renamed_arguments(own.forward)}  # fmt: skip
    made: Any = type(own.__name__, (base,), body)
    # A base class may have put another around it (transformers' checkpointing does).
    made._resfx_forward = made.forward if takes_keyword(made.forward) else None
    return made


def make_unit(module: nn.Module, path: str, recipe: Any, bank: nn.Module) -> Unit:
    """Let a module run generated code."""
    if not hasattr(type(module), "_resfx_bind"):
        if "forward" in vars(module):
            _take_forward_in(module)
        cls: Any = type(module)
        module.__class__ = unit_class(cls, class_before(module).forward)
    unit = module.__dict__.get("_resfx_unit")
    if unit is None or unit.recipe is not recipe:
        unit = module.__dict__["_resfx_unit"] = Unit(path, recipe)
    module.__dict__["_resfx_new"] = levels_of(bank, path)
    return unit


def _take_forward_in(module: nn.Module) -> None:
    """A ``forward`` that was put in a module's place is what the rewritten code was made of: it would hide it."""
    if accelerates_hook(module) is not None:
        raise VariantError(
            f"cannot rewrite a {type(module).__name__} with a hook of accelerate", "its forward belongs to the hook",
            "accelerate.hooks.remove_hook_from_submodules(model), rewrite, then dispatch or offload the result",
        )  # fmt: skip
    own, run = type(module), module.__dict__.pop("forward")
    module.__dict__[OWN_FORWARD] = run
    given = inspect.signature(run)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[OWN_FORWARD](*args, **kwargs)

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = given.replace(parameters=[this, *given.parameters.values()])  # type: ignore[attr-defined]
    body = {"forward": forward, "__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    module.__class__ = type(own.__name__, (own,), body)
