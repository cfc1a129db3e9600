"""Values in generated code: where the parts of an argument or a result are, and what is passed beside arguments."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from resfx._torch import held_buffers, held_parameters, pytree
from resfx.errors import VariantError
from resfx.passes.capture.objects import fields_of
from resfx.passes.capture.structure import COMPOUND, Template


class Handed:
    """What a generated call is told beside its arguments: which code to run, and values that are no arguments.

    Attributes:
        code: the :class:`resfx.passes.fold.function.Code` to run.
        given: what it takes from outside.
        made: what others will read of it, once it has run.
    """

    __slots__ = ("code", "given", "made", "recorded")

    def __init__(self, code: Any, given: list[Any]) -> None:
        self.code, self.given = code, given
        self.made: Any = code  # which says, read like a list, that it has not run
        self.recorded: bool | None = None

    def begin(self, path: str) -> None:
        """Before the call runs; again where it is run again for the backward pass.

        Raises:
            VariantError: where it ran without gradients and now runs with them, as checkpointing of the reentrant kind
                has it: gradients of what is no argument or result would be lost.
        """
        recording = torch.is_grad_enabled()
        if self.recorded is None:
            self.recorded, self.made = recording, []
        elif recording and not self.recorded and any(map(_is_differentiable, (*self.given, *self.made))):
            raise VariantError(
                f"cannot run {path} again for its gradients", "checkpointing of the reentrant kind knows only arguments"
                " and results, and other values cross its border here",
                'use_reentrant=False: gradient_checkpointing_enable({"use_reentrant": False})',
            )  # fmt: skip


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def part(value: Any, index: int) -> Any:
    """A part of a value of a class of its own, by number."""
    node = pytree.SUPPORTED_NODES.get(type(value))
    if node is not None:
        return list(node.flatten_fn(value)[0])[index]
    return list(fields_of(value).values())[index]


def _inside(template: Template, text: str) -> Iterator[tuple[Template, str]]:
    kind = template[0]
    for i, inner in enumerate(template[-1]):
        if kind == "seq":
            yield inner, f"{text}[{i}]"
        elif kind == "dict":
            yield inner, f"{text}[{template[1][i]!r}]"
        else:
            name = template[2][i] if isinstance(template[2], (list, tuple)) and len(template[2]) > i else None
            # What a node of torch's pytree keeps may be its keys, or anything else.
            known = isinstance(name, str) and name.isidentifier()
            known = known and (kind == "object" or name in getattr(template[1], "__dataclass_fields__", ()))
            yield inner, f"{text}.{name}" if known else f"part({text}, {i})"


def leaves(template: Template, text: str) -> Iterator[tuple[int, str]]:
    """``(slot, where it is)`` of every leaf of a value that is called ``text``."""
    if template[0] in ("tensor", "int"):
        yield template[1], text
    elif template[0] in COMPOUND:
        for inner, path in _inside(template, text):
            yield from leaves(inner, path)


def objects(template: Template, text: str) -> Iterator[tuple[int, str]]:
    """``(number, where it is)`` of every stateful object in a value."""
    if template[0] == "known":
        yield template[1], text
    elif template[0] in COMPOUND:
        for inner, path in _inside(template, text):
            yield from objects(inner, path)


def has_leaves(template: Template) -> bool:
    """Whether a value holds any tensor or size."""
    return any(True for _ in leaves(template, ""))


def numbered(template: Template) -> tuple[Template, list[int], list[int]]:
    """A template whose leaves and objects count from 0, and which they were."""
    slots: list[int] = []
    known: list[int] = []

    def visit(t: Template) -> Template:
        if t[0] in ("tensor", "int"):
            slots.append(t[1])
            return (t[0], len(slots) - 1)
        if t[0] == "known":
            known.append(t[1])
            return ("known", len(known) - 1)
        return (*t[:-1], tuple([visit(p) for p in t[-1]])) if t[0] in COMPOUND else t

    return visit(template), slots, known


def steps(root: Any, path: str) -> str:
    """A dotted path as code behind the object it starts from: ``layers.0.mlp`` is ``.layers[0].mlp``."""
    found = ""
    for name in path.split(".") if path else ():
        if name.isidentifier() and not keyword.iskeyword(name):
            found += f".{name}"
        elif isinstance(root, (nn.ModuleList, nn.Sequential, nn.ParameterList)):
            found += f"[{name}]"
        else:
            found += f".__getattr__({name!r})"
        root = getattr(root, name)
    return found


def tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a module itself has of tensors: parameters, buffers, and plain attributes."""
    named = (held_parameters(module), held_buffers(module), vars(module))
    yield from ((k, v) for held in named for k, v in held.items() if isinstance(v, torch.Tensor))


def places_of(module: nn.Module, tensor: torch.Tensor) -> Iterator[str]:
    """The dotted paths at which a module, or one below it, has a tensor."""
    for path, inner in module.named_modules():
        for name, held in tensors_of(inner):
            if held is tensor:
                yield f"{path}.{name}" if path else name


def follow(root: Any, path: str) -> Any:
    """What a dotted path leads to."""
    for name in path.split(".") if path else ():
        root = getattr(root, name)
    return root


def expression(node: fx.Node) -> Any:
    """The symbolic expression of a size."""
    return getattr(getattr(node.meta.get("val"), "node", None), "expr", None)


def sizes(node: fx.Node) -> list[Any]:
    """Expressions of a tensor's open sizes; ``None`` for the fixed ones."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return []
    return [size.node.expr if isinstance(size, torch.SymInt) else None for size in value.shape]


def bound(given: Template, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """The templates of a call's arguments by the names of its parameters; those left out are their defaults."""
    args, kwargs = given[2]
    found = inspect.Signature(parameters).bind(*args[2], **dict(zip(kwargs[1], kwargs[2], strict=True))).arguments
    every: dict[str, Any] = {}
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            every[p.name] = list(found.get(p.name, ()))
        elif p.kind is p.VAR_KEYWORD:
            every[p.name] = dict(found.get(p.name, {}))
        else:
            every[p.name] = found[p.name] if p.name in found else ("const", type(p.default), p.default)
    return every
