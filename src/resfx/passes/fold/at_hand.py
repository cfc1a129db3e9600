"""What generated code reads off the things at hand: tensors of modules, state of objects, sizes of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from resfx.passes.capture.marking.record import unmarked
from resfx.passes.holdings import Place, text_of

from . import values
from .function import NotExpressible
from .plan import Plan, is_size
from .region import Region
from .text import Text
from .writes import writers_of


class AtHand(Text):
    """The values that the code of one region has, by the text that gives them.

    Attributes:
        lines: the code so far.
        env: what values of the graph are called.
        objects: what stateful objects are called, by number.
        early: where in the code an object was at hand first.
        lent: what modules and configs from outside are called that came as arguments, by path.
    """

    def __init__(self, plan: Plan, region: Region, tree: nn.Module) -> None:
        super().__init__()
        self.plan, self.region, self.tree = plan, region, tree
        self.module = tree.get_submodule(region.path or "")
        self.lines: list[str] = []
        self.env: dict[fx.Node, str] = {}
        self.objects: dict[int, str] = {}
        self.early: dict[int, int] = {}
        self.lent: dict[str, str] = {}

    def _new_module(self, path: str) -> str:
        """A module that a method put in."""
        raise NotImplementedError

    # -- lines ----------------------------------------------------------------------------------------------------

    def _set(self, name: str, text: str, at: int | None = None) -> str:
        """A line that names a value: the next one, or where ``at`` was the next."""
        name = self._fresh(name)
        self.lines.insert(len(self.lines) if at is None else at, f"{name} = {text}")
        if at is not None:
            self.early = {n: before + (before >= at) for n, before in self.early.items()}
        return name

    # -- objects --------------------------------------------------------------------------------------------------

    def _meet(self, number: int, text: str) -> None:
        """An object is at hand from here on: what is read of it is read here, before a call puts other values in."""
        if number not in self.objects:
            self.objects[number], self.early[number] = text, len(self.lines)

    def _in_object(self, node: fx.Node) -> str:
        """A value that an object at hand has; nothing where none has it still."""
        number = self.plan.objects.get(node)
        if number is None or number not in self.objects or self.plan.replaced_before(node, self.region):
            return ""
        held = self.plan.capture.objects[number]
        text = dict(values.leaves(held.first, self.objects[number]))[held.leaves.index(node)]
        self.env[node] = self._set("size" if is_size(node) else "tensor", text, self.early.get(number))
        return self.env[node]

    def _object(self, number: int) -> str:
        if number not in self.objects:
            made = self.plan.capture.objects[number]
            for around, way in made.held_by if made.inside is None else [made.inside]:
                if made.inside is not None or around in self.objects:
                    self.objects[number] = ".".join((self._object(around), *way))
                    return self.objects[number]
            if made.given or made.maker not in {self.region.call, *self.region.dissolved}:
                raise NotExpressible(f"a {made.cls.__name__}")
            name = made.cls.__name__
            text = self._compose(made.first, lambda slot: self._text(made.leaves[slot]))
            self.objects[number] = self._set(name.lower(), text)
        return self.objects[number]

    # -- modules --------------------------------------------------------------------------------------------------

    def _attribute(self, node: fx.Node) -> str:
        """A tensor of the module's own. One that the call replaces is read first of all."""
        target = str(node.target)
        writers = writers_of(self.plan, self.tree, target)
        if not writers:
            return self._way_to(target)
        if any(self.region.call.is_after(call) for call in writers):
            raise NotExpressible(f"{target} as it was before it was replaced")
        self.env[node] = self._set(target.rpartition(".")[2], self._way_to(target), 0)
        return self.env[node]

    def _way_to(self, target: str) -> str:
        """The way from ``self`` to a tensor: of several that have it, a graph names one."""
        own = f"{self.region.path}." if self.region.path else ""
        if target.startswith(own):
            return "self" + values.steps(self.module, target.removeprefix(own))
        if target.startswith("resfx."):
            owner, _, name = target.rpartition(".")
            return f"{self._new_module(owner)}.{name}"
        place = next(values.places_of(self.module, values.follow(self.tree, target)), None)
        if place is None:
            raise NotExpressible(f"{target}, which is no attribute of {self.region.path}")
        return "self" + values.steps(self.module, place)

    def _in_holding(self, node: fx.Node, places: tuple[Place, ...]) -> str:
        """A tensor in a list, dict or object of a module's. Where the call writes there, it is read first of all."""
        found = ((place, text) for place in places if (text := self._at_hand(place.owner)) is not None)
        if (at := next(found, None)) is None:
            raise NotExpressible(f"{places[0]}, which is not below {self.region.path}")
        place, text = at
        text += text_of(place.steps, self._text)
        writers = [call for each in places for call in self.plan.writers_at(each)]
        if not writers:
            return text
        if any(self.region.call.is_after(call) for call in writers):
            raise NotExpressible(f"{place} as it was before it was replaced")
        self.env[node] = self._set("held", text, 0)
        return self.env[node]

    def _owned(self, paths: tuple[str, ...]) -> str:
        found = (text for path in paths if (text := self._at_hand(path)) is not None)
        if (text := next(found, None)) is None:
            raise NotExpressible(f"{paths[0]}, which is not below {self.region.path}")
        return text

    def _at_hand(self, path: str) -> str | None:
        """A module or config by its path: below ``self``, or below an argument."""
        for start, text in {self.region.path or "": "self", **self.lent}.items():
            if path == start:
                return text
            if not start or path.startswith(f"{start}."):
                return text + values.steps(values.follow(self.tree, start), path.removeprefix(f"{start}."))
        return None

    # -- sizes ----------------------------------------------------------------------------------------------------

    def _size(self, node: fx.Node) -> str:
        """A number of sizes, read off a tensor at hand or computed as the graph did."""
        if text := self._in_object(node):
            return text
        expr = values.expression(node)
        if text := self._read_off(expr):
            self.env[node] = text
            return text
        if node.op == "call_function" and node.target is not torch.ops.aten.sym_size.int:
            return self._target(node)
        if node.args and isinstance(node.args[0], fx.Node):
            whole = unmarked(node.args[0])
            if (seen := next((n for n in self.env if unmarked(n) is whole), None)) is not None:
                return f"{self.env[seen]}.shape[{node.args[1]}]"
            if text := self._in_object(whole):
                return f"{text}.shape[{node.args[1]}]"
            if self.plan.home.get(node) is self.region:
                return f"{self._text(node.args[0])}.shape[{node.args[1]}]"
        raise NotExpressible(f"the size {expr}")

    def _read_off(self, size: Any) -> str:
        """Where a size can be read off a tensor at hand; nothing where none has it."""
        return next((f"{text}.shape[{axis}]" for known, text in self.env.items()
                     for axis, its in enumerate(values.sizes(known)) if its == size), "")  # fmt: skip
