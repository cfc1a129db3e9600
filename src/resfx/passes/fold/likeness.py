"""Whether the arguments of a call are like those that code was made for, as one generated function.

Every call of a rewritten module asks this, so the templates are spelled out once, as straight Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from resfx._torch import pytree
from resfx.passes.capture.calls import carried
from resfx.passes.capture.objects import fields_of, layout_of
from resfx.passes.capture.structure import Template

_NONE: Mapping[int, int] = {}
Like = Callable[[dict[str, Any], tuple[Any, ...]], Any]
"""``like(given, constants)``: the tensors that the code computes with, or in what the call differs."""


class Likeness:
    """The text of the function, and the constants in it.

    Args:
        arguments: a template for each parameter.
        objects: classes of stateful objects by number; with the whole state where the code looked into one.
        free: slots that may hold anything.
        used: which tensors the function returns: slots, or ``(object, place in it)``.
        kinds: their types and devices.
        axes: how many some tensors have, by slot.
    """

    def __init__(
        self, arguments: Mapping[str, Any], objects: Mapping[int, tuple[type, Template | None]], free: frozenset[int],
        used: Sequence[Any], kinds: Sequence[tuple[torch.dtype, torch.device]], axes: Mapping[int, int] = _NONE,
    ) -> None:  # fmt: skip
        self._objects, self._free, self._axes = objects, free, axes
        self._constants: list[Any] = []
        self._found: dict[Any, str] = {}  # names of tensors, by slot or by place in an object
        self._objects_at: dict[int, str] = {}  # names of objects, by number
        self._inside: int | None = None  # the one whose state is spelled out
        self._met: list[str] = []  # names of the objects in it, in order
        self._names = iter(f"v{i}" for i in range(10**9))
        lines: list[str] = []
        for name, template in arguments.items():
            self._unlike = repr(f"argument {name!r}")
            lines += self._tests(template, f"given[{name!r}]")
        self._unlike = repr("identity of arguments")
        lines += self._all_others(list(self._objects_at.values()))
        tensors = [self._found[at] for at in used]
        for tensor, (dtype, device) in zip(tensors, kinds, strict=True):
            wanted = f"{tensor}.dtype != {self._constant(dtype)} or {tensor}.device != {self._constant(device)}"
            lines.append(f"if {wanted}: return 'types'")
        lines.append(f"return [{', '.join(tensors)}]")
        self._text = "def like(given, at):\n" + "".join(f"    {line}\n" for line in lines)

    @property
    def function(self) -> Like:
        """One function for one text: what equal blocks are guarded by is the same object to a compiler."""
        return _compiled(self._text)

    @property
    def constants(self) -> tuple[Any, ...]:
        """What the function is called with."""
        return tuple(self._constants)

    def _constant(self, value: Any) -> str:
        self._constants.append(value)
        return f"at[{len(self._constants) - 1}]"

    def _refuse(self, condition: str) -> str:
        return f"if {condition}: return {self._unlike}"

    def _tests(self, template: Any, value: str) -> Iterator[str]:
        """Lines that return from the function where a value is unlike its template."""
        if type(template) is tuple and (template[0] == "owned" or self._is_free(template)):
            return
        if not value.isidentifier():
            name = next(self._names)
            yield f"{name} = {value}"
            value = name
        if type(template) is dict:
            names = self._constant(frozenset(template))
            yield self._refuse(f"not isinstance({value}, dict) or {value}.keys() != {names}")
            for key, part in template.items():
                yield from self._tests(part, f"{value}[{key!r}]")
        elif type(template) is list:
            yield from self._items(template, value)
        else:
            yield from self._kind(template, value)

    def _is_free(self, template: Template) -> bool:
        return self._inside is None and template[0] == "tensor" and template[1] in self._free

    def _kind(self, template: Template, value: str) -> Iterator[str]:
        kind = template[0]
        if kind == "tensor":
            yield self._refuse(f"not isinstance({value}, Tensor)")
            self._found[template[1] if self._inside is None else (self._inside, template[1])] = value
            if self._inside is None and template[1] in self._axes:
                yield self._refuse(f"{value}.dim() != {self._axes[template[1]]}")
        elif kind == "const":
            yield self._refuse(self._other(template, value))
        elif kind == "int":
            # In a trace a size, or a number or truth of values that its code hands on.
            yield self._refuse(f"not isinstance({value}, (int, float, SymInt, SymFloat, SymBool))")
            if self._inside is not None:
                yield self._refuse(f"type({value}) is bool or {value} < 2")  # a trace takes 0 and 1 for constants
                name = self._found[self._inside, template[1]] = next(self._names)
                yield f"{name} = carried({value})"
        elif kind == "known":
            yield from self._known(template[1], value)
        elif kind == "met":
            known = self._met[template[1] : template[1] + 1]
            yield self._refuse(f"{value} is not {known[0]}" if known else "True")
        elif kind == "held":
            held = self._constant(template[2])
            yield self._refuse(f"not ({held} == type({held})({value}))")
        else:
            if kind == "object":
                self._met.append(value)
            yield from self._compound(template, value)

    def _other(self, template: Template, value: str) -> str:
        _, cls, wanted = template
        if wanted is None or cls is bool:
            return f"{value} is not {wanted}"
        constant = self._constant(wanted)
        return f"type({value}) is not {self._constant(cls)} or not ({value} is {constant} or {value} == {constant})"

    def _known(self, number: int, value: str) -> Iterator[str]:
        cls, state = self._objects[number]
        if self._objects_at.setdefault(number, value) != value:
            yield self._refuse(f"{value} is not {self._objects_at[number]}")
            return
        if state is None:
            yield self._refuse(f"type({value}) is not {self._constant(cls)}")
            return
        around, self._inside, self._met = self._met, number, []
        yield from self._compound(state, value)
        yield from self._all_others(self._met)
        self._inside, self._met = None, around

    def _all_others(self, names: list[str]) -> Iterator[str]:
        if len(names) > 1:
            yield self._refuse(f"len({{{', '.join(f'id({name})' for name in names)}}}) != {len(names)}")

    def _compound(self, template: Template, value: str) -> Iterator[str]:
        kind, parts = template[0], template[-1]
        cls = "dict" if kind == "dict" else self._constant(template[1])
        yield self._refuse(f"type({value}) is not {cls}")
        if kind == "dict":
            yield self._refuse(f"tuple({value}) != {self._constant(template[1])}")
            for key, part in zip(template[1], parts, strict=True):
                yield from self._tests(part, f"{value}[{key!r}]" if type(key) is str else
                                       f"{value}[{self._constant(key)}]")  # fmt: skip
        elif kind == "seq":
            yield from self._items(parts, value)
        elif kind == "node":
            children, context = next(self._names), next(self._names)
            yield f"{children}, {context} = {self._constant(pytree.SUPPORTED_NODES[template[1]].flatten_fn)}({value})"
            yield self._refuse(f"{context} != {self._constant(template[2])}")
            yield from self._items(parts, children)
        else:
            yield from self._fields(template, value)

    def _fields(self, template: Template, value: str) -> Iterator[str]:
        _, cls, names, parts = template
        fields, layout = next(self._names), layout_of(cls)
        plain = layout.base is object and not layout.slots
        yield f"{fields} = {value}.__dict__" if plain else f"{fields} = fields_of({value})"
        yield self._refuse(f"tuple({fields}) != {self._constant(names)}")
        for name, part in zip(names, parts, strict=True):
            key = repr(name) if type(name) is str else self._constant(name)
            yield from self._tests(part, f"{fields}[{key}]")

    def _items(self, templates: Sequence[Any], value: str) -> Iterator[str]:
        if not value.isidentifier():
            name = next(self._names)
            yield f"{name} = {value}"
            value = name
        yield self._refuse(f"len({value}) != {len(templates)}")
        for i, part in enumerate(templates):
            yield from self._tests(part, f"{value}[{i}]")


@functools.cache
def _compiled(text: str) -> Like:
    scope: dict[str, Any] = {
        "Tensor": torch.Tensor, "SymInt": torch.SymInt, "SymFloat": torch.SymFloat, "SymBool": torch.SymBool,
        "fields_of": fields_of, "carried": carried,
    }  # fmt: skip
    exec(text, scope)
    return scope["like"]
