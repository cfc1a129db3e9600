"""The module handed back: the user's own class and tree, in which some modules run rewritten code."""

from __future__ import annotations

import copy
import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from resfx._torch import held_modules, held_parameters
from resfx.errors import OptionError, ResfxError, VariantError, meant
from resfx.report.report import Report

from .huggingface import starting_new_modules
from .moving import changing, part_from
from .rewriting import Rewriting
from .saved.pickled import reduced
from .saved.pretrained import save_pretrained


class Handle:
    """What is ours of a rewritten model: :func:`of` gives it, whatever names the user's class has taken.

    Attributes:
        module: the rewritten model.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def report(self) -> Report:
        """What was found and changed."""
        report = rewriting_of(self.module).first
        assert report is not None
        report.new_parameters = {n: p.numel() for n, p in self.new_parameters().items()}
        return report

    @property
    def variants(self) -> list[str]:
        """A line for each piece of generated code: the module that runs it, and how often it was captured."""
        units = [(n, m.__dict__.get("_resfx_unit")) for n, m in self.module.named_modules()]
        return [f"{name or '(root)'}: {i + 1}" for name, unit in units if unit for i in range(len(unit.variants))]

    def new_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the rewrite added, by name: for an optimizer group of their own."""
        return {n: p for n, p in self.module.named_parameters() if n.startswith("resfx.")}

    def code(self, name: str = "") -> str:
        """The generated code of a module, the newest that it was made or that a call around it has it run; nothing for
        one that runs its own.

        Raises:
            OptionError: for a name that no module has, with the nearest that one has.
        """
        names = [n for n, _ in self.module.named_modules()]
        if name not in names:
            raise OptionError(f"there is no module {name!r:.60}", f"a {type(self.module).__name__} has others",
                              f"code({meant(str(name), names) or names[-1]!r})")  # fmt: skip
        unit = self.module.get_submodule(name).__dict__.get("_resfx_unit")
        return unit.codes[-1].source if unit is not None and unit.codes else ""


def of(module: Any) -> Handle:
    """What is ours of a rewritten model: its report, its new parameters, its variants, its generated code.

    Raises:
        ResfxError: if the module is not a rewritten one.
    """
    rewriting_of(module)
    return Handle(module)


def rewriting_of(module: Any) -> Rewriting:
    """The rewriting of a model.

    Raises:
        ResfxError: if the module is not a rewritten one.
    """
    found = getattr(module, "__dict__", {}).get("_resfx")
    if found is None:
        raise ResfxError(
            f"there is nothing of ours in a {type(module).__name__}", "it is not a rewritten module",
            "pass what resfx.rewrite returned",
        )  # fmt: skip
    return found


class _NotForwarded:
    """A method that the ``__getattr__`` of a wrapper around the model does not find. ``copy.deepcopy`` asks objects for
    ``__deepcopy__``: a wrapper that hands on what it lacks (of PEFT, of ``torch.compile``) would be copied as what it
    wraps."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is not None and sys._getframe(1).f_code.co_name == "__getattr__":
            raise AttributeError(self.function.__name__)
        return self.function.__get__(instance, owner)


_COMPILED = "_compiled_call_impl"  # of Module.compile: bound to the module it was called on


class Rewritten:
    """What the root of every rewritten model is beside its own class.

    The class name stays the user's, so that ``save_pretrained``, ``generate`` and ``isinstance`` see what they know.
    """

    _resfx: Rewriting

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        # Parameters may still be those of the models this was made of: they keep their type and device.
        if kinds := changing(self, fn):  # type: ignore[arg-type]
            if self._resfx.source.frozen:
                raise VariantError(
                    "cannot change the type or device of a captured program", "both are literals in its graph",
                    "move the model before torch.export, or rewrite the model itself",
                )  # fmt: skip
            part_from(self, self._resfx_relatives(), kinds)  # type: ignore[arg-type]
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def _resfx_relatives(self) -> list[nn.Module]:
        """Living models that this one was made of, or that were made of it; not its shallow copies, which are it."""
        living = [ref() for ref in self.__dict__.get("_resfx_family", ())]
        own = held_modules(self)  # type: ignore[arg-type]
        return [m for m in living if m is not None and held_modules(m) is not own]

    @_NotForwarded
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        held = {k: v for k, v in self.__dict__.items() if k not in ("_resfx_family", _COMPILED)}
        twin.__dict__.update(copy.deepcopy(held, memo))
        return twin

    def __copy__(self) -> Any:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)  # a shallow copy of a module shares its tables of parameters and submodules
        twin.__dict__.pop(_COMPILED, None)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = self._resfx
        return reduced(self, made.rewrite, made.source, made.applications)  # type: ignore[arg-type]


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


_ACCESS = ("report", "variants", "new_parameters")


def hand_back(tree: nn.Module, rewriting: Rewriting, original: nn.Module) -> Any:
    """Make a rewritten tree what the user gets."""
    cls = type(tree)
    if not issubclass(cls, Rewritten):
        own: Any = getattr(cls, "_resfx_before", cls)
        taken = {n for n in _ACCESS if hasattr(own, n) or n in vars(tree) or hasattr(tree, n)}  # fmt: skip
        body: dict[str, Any] = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__,
                                "_resfx_before": own}  # fmt: skip
        body |= {n: _access(n) for n in _ACCESS if n not in taken}
        if hasattr(own, "save_pretrained"):
            body["save_pretrained"] = functools.wraps(own.save_pretrained)(save_pretrained)
        body |= starting_new_modules(own)
        if hasattr(own, "prepare_inputs_for_generation"):
            body["create_masks_for_generate"] = property(_masks_for_generate)
        tree.__class__ = type(own.__name__, (Rewritten, cls), body)
    tree.__dict__["_resfx"] = rewriting
    family = original.__dict__.get("_resfx_family") or [weakref.ref(original)]
    family.append(weakref.ref(tree))
    tree.__dict__["_resfx_family"] = family
    return tree


def _access(name: str) -> Any:
    if name == "new_parameters":
        return lambda self: Handle(self).new_parameters()
    return property(lambda self: getattr(Handle(self), name), doc=getattr(Handle, name).__doc__)


def _masks_for_generate(self: Any) -> Callable[..., Any]:
    """What ``generate()`` makes of a padding mask for a cache of fixed size: nothing where there are mixers.

    They read which positions are padding; the host's own mask of pairs is made of it in the model.
    """
    own = hasattr(type(self)._resfx_before, "create_masks_for_generate")
    if own or not any(a.method.scope == "sequence" for a in self._resfx.applications):
        return super(type(self), self).create_masks_for_generate  # type: ignore[misc]
    return lambda attention_mask=None, **call: attention_mask
