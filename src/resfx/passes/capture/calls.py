"""A call of a module as plain data: which arguments are given, which of them are tensors, what is constant."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from resfx._torch import is_compiling
from resfx.errors import CaptureError, InputError, meant

from .structure import COMPOUND, Flattener, Template, build, named_parts


@dataclass
class Call:
    """Arguments of one call, flattened.

    Attributes:
        template: the structure of the arguments by name, in signature order, without those equal to their default;
            equal templates mean the same Python control flow.
        leaves: tensors, and varying integers carried as the length of an empty tensor.
        objects: stateful objects (caches) among the arguments, in the order they were met.
        given: the tensors themselves, where ``leaves`` only have their shapes.
    """

    template: Template
    leaves: list[torch.Tensor]
    objects: list[Any] = field(default_factory=list)
    given: list[torch.Tensor] | None = None

    def arguments(self, leaves: Any) -> dict[str, Any]:
        """The arguments by name, rebuilt over other leaves."""
        return build(self.template, unwrap(self.template, leaves))


def bind(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by parameter name; ``*args`` and ``**kwargs`` stay one entry each. Defaults are left out.

    Raises:
        InputError: if they do not fit, naming the arguments that ``forward`` takes.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise _misfit(signature, kwargs, error) from None
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        default = signature.parameters[name].default
        if value is default or (
            type(value) is type(default) and isinstance(value, (bool, int, str)) and value == default
        ):
            continue
        given[name] = dict(value) if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else value
    return given


def by_new_names(renamed: dict[str, tuple[str, str]], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments under the names that ``forward`` has for them now; an older name is warned of, as by the model itself.

    Args:
        renamed: what :func:`resfx.runtime.huggingface.renamed_arguments` found.
    """
    for old, (new, what) in renamed.items():
        if old in kwargs and new not in kwargs:
            if not is_compiling():
                warnings.warn(what, FutureWarning, stacklevel=3)
            kwargs = {new if name == old else name: value for name, value in kwargs.items()}
    return kwargs


def _misfit(signature: inspect.Signature, kwargs: dict[str, Any], error: TypeError) -> InputError:
    parameters = signature.parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    strange = [] if open_ended else [k for k in kwargs if k not in names]
    what = f"no argument {', '.join(map(repr, strange))}" if strange else str(error)
    return InputError(
        "these arguments do not fit the model's forward", f"{what}; it takes ({', '.join(map(_name, parameters))})",
        spelling(names, kwargs) or "pass args=/kwargs= as the model itself takes them",
    )  # fmt: skip


def _name(parameter: inspect.Parameter) -> str:
    stars = "*" * ((parameter.kind is parameter.VAR_POSITIONAL) + 2 * (parameter.kind is parameter.VAR_KEYWORD))
    return stars + parameter.name


def spelling(names: Collection[str], kwargs: Collection[str]) -> str:
    """What misspelt keywords stand for, in words; empty where none is near an argument's name."""
    free = [n for n in names if n not in kwargs]
    strange = [k for k in kwargs if k not in names]
    pairs = [(k, free[0] if len(free) == len(strange) == 1 else meant(k, free)) for k in strange]
    return ", ".join(f"{name}= instead of {given}=" for given, name in pairs if name)


def unbind(signature: inspect.Signature, given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``args`` and ``kwargs`` for the original ``forward`` from arguments by name."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    positional = True
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kwargs.update(given.get(name, {}))
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            args.extend(given.get(name, ()))
        elif name not in given:
            positional = False
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY or not positional:
            kwargs[name] = given[name]
        else:
            args.append(given[name])
    return tuple(args), kwargs


def flatten_call(given: dict[str, Any], varying: Collection[tuple[type, str]] = ()) -> Call:
    """Take the arguments of a call apart.

    Raises:
        CaptureError: if one of them holds tensors and cannot be taken apart, or is a module.
    """
    flat = Flattener(varying=varying)
    template = flat.flatten(given)
    for name, part in named_parts(template):
        if part[0] == "const" and isinstance(part[2], nn.Module):
            raise CaptureError(
                "cannot capture a call with a module among its arguments",
                f"{name} is a {type(part[2]).__name__}: its weights would be constants, and changes to it lost",
                "hold it as a submodule of the model, and call the model",
            )  # fmt: skip
    return Call(template, [carried(leaf) for leaf in flat.leaves], flat.objects)


def carried(leaf: Any) -> torch.Tensor:
    """A leaf as a tensor: an integer is the length of an empty one."""
    return leaf if isinstance(leaf, torch.Tensor) else torch.empty((leaf, 0), dtype=torch.float32)


def unwrap(template: Template, leaves: Any) -> list[Any]:
    """Leaves as the template wants them: an integer is read back from the length that carried it."""
    values = list(leaves)
    for index in _integers(template):
        values[index] = values[index].shape[0]
    return values


def _integers(template: Template) -> list[int]:
    if template[0] == "int":
        return [template[1]]
    if template[0] in COMPOUND:
        return [i for part in template[-1] for i in _integers(part)]
    return []
