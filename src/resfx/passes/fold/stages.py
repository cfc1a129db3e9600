"""A rewritten call in consecutive stages: the code of each, and the values that cross from one to the next.

The calls around the blocks are opened, so that one piece of code calls all blocks; it is cut before the first block of
each stage. What depends on no parameter and on no floating-point input (masks, rotary tables) does not cross: every
stage that reads it computes it again. The model's own inputs do not cross either: a later stage takes by name those
that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from resfx.errors import VariantError
from resfx.passes.capture.normalize import enter_grad_mode, exit_grad_mode
from resfx.passes.capture.structure import Template
from resfx.passes.find.mark import mark_of
from resfx.passes.find.operators import is_inplace
from resfx.passes.holdings import Place

from . import values
from .borders import Borders, borders
from .code import Writer
from .function import Code, NotExpressible, Shared
from .plan import Plan, is_new, is_size
from .region import Region
from .writes import writers_of

Item = fx.Node | Region


@dataclass(frozen=True, eq=False)
class StageCode:
    """One stage.

    Attributes:
        code: its function: ``forward(self, new, None, *takes, **inputs)``, or the model's own signature for the first.
        fixed: templates of the arguments that are no tensors, by name, for the first.
        takes, gives: what crosses from the stage before and to the one behind, as values of the graph.
        recalls, drops, keeps: what earlier stages of its process have kept for it, those of them that no later one
            reads, and what it keeps for later ones. It is called with ``*takes, *recalls`` and returns
            ``*gives, *keeps``.
        names: what the values that it gives are called.
        inputs: the model's own tensor arguments that it reads, by name.
        modules, tensors, new: paths of the modules that it calls, of the parameters and buffers that its own code
            reads, and of the new modules that it calls itself, below the bank.
    """

    code: Code
    fixed: dict[str, Any]
    takes: list[fx.Node]
    gives: list[fx.Node]
    recalls: list[fx.Node]
    drops: list[fx.Node]
    keeps: list[fx.Node]
    names: list[str]
    inputs: dict[str, fx.Node]
    modules: list[str]
    tensors: list[str]
    new: list[str]


class Cut:
    """A call, opened down to the blocks, and where it is cut.

    Attributes:
        stage: which stage each operator and call belongs to, in order.
        anywhere: values that any stage can compute by itself.
        borders: the values that cross from each stage to the next, and those that are kept.
    """

    def __init__(self, plan: Plan, tree: nn.Module, starts: Sequence[str], ranks: int | None = None) -> None:
        self.plan, self.tree, self.starts = plan, tree, list(starts)
        self._open()
        items = plan.items(plan.root)
        begins = [self._position(items, name) for name in starts]
        if begins != sorted(begins):
            raise VariantError("cannot cut the model into stages", "it calls the blocks named in another order",
                               f"at={[n for _, n in sorted(zip(begins, starts, strict=True))]}")  # fmt: skip
        self.stage = {item: sum(i >= b for b in begins) for i, item in enumerate(items)}
        self.stage |= {item: stage for item in items if (stage := self._stage_of_owner(item)) is not None}
        self._not_before_what_they_read()
        self.anywhere = set(_without_parameters(plan, tree))
        self.borders = self._borders(ranks or len(starts) + 1)

    def _open(self) -> None:
        while True:
            around = [r for r in self.plan.region.values() if r.path and r.outer is self.plan.root
                      and any(s.startswith(f"{r.path}.") for s in self.starts)]  # fmt: skip
            if not around:
                break
            self.plan.dissolve(around[0])
        self.plan.open_root()
        opened = (self.plan.root.call, *self.plan.root.dissolved)
        if mode := next((mode for call in opened for mode in call.modes), None):
            raise VariantError(
                "cannot cut the model into stages",
                f"the code around its blocks sets the mode of {'.'.join(mode.ways[0]) or 'the model'}",
                "set it outside of forward, as train() of the model does",
            )

    def _position(self, items: Sequence[Item], name: str) -> int:
        found = [i for i, item in enumerate(items) if isinstance(item, Region) and item.path == name]
        if len(found) != 1:
            raise VariantError(
                f"cannot begin a stage with {name!r}",
                f"the model calls it {len(found)} times" if found else "the model makes no call of that name",
                "at= names of blocks that are called once, as resfx.scan lists them",
            )
        return found[0]

    def _stage_of_owner(self, item: Item) -> int | None:
        """The stage of the block that a new module stands in: what it reads before the block is read there."""
        if isinstance(item, Region) or item.op != "call_module":
            return None
        owner = str(item.target).removeprefix("resfx.").partition(".")[2]
        blocks = (r for r in self.stage if isinstance(r, Region) and r.path and owner.startswith(f"{r.path}."))
        return next((self.stage[block] for block in blocks), None)

    def _not_before_what_they_read(self) -> None:
        """What stands before a block, and reads what a new module of that block gives, is of the block's stage."""
        maker: dict[fx.Node, int] = {}
        for item in self.stage:
            self.stage[item] = max([self.stage[item], *(maker.get(node, 0) for node in _needed_by(item))])
            maker |= dict.fromkeys(_made_by(item), self.stage[item])

    def _borders(self, ranks: int) -> Borders:
        last = len(self.starts)
        readers = {node: {last} for mark in self.plan.root.leaves.values() for node in mark.all_input_nodes}
        for item, stage in self.stage.items():
            for node in _needed_by(item):
                readers.setdefault(node, set()).add(stage)
        elsewhere = {*self.anywhere, *self.plan.root.enters.values()}
        made = {n: stage for item, stage in self.stage.items() for n in _made_by(item) if n not in elsewhere}
        return borders(made, readers, last + 1, ranks)

    def name_of(self, node: fx.Node) -> str:
        """What a value is called: as the module that gives it."""
        maker = next((i for i in self.stage if isinstance(i, Region) and node in _made_by(i)), None)
        names = (maker.path or maker.name).split(".") if maker else []
        return next((n for n in reversed(names) if not n.isdigit()), node.name)

    def is_free(self, item: Item) -> bool:
        """Whether any stage can do it by itself."""
        made = list(_made_by(item))
        return bool(made) and all(node in self.anywhere for node in made)


def _made_by(item: Item) -> Iterator[fx.Node]:
    """The values that an operator or call gives."""
    if isinstance(item, Region):
        yield from (*item.leaves.values(), *item.handed)
    else:
        yield item


def _needed_by(item: Item) -> Iterator[fx.Node]:
    """The values that an operator or call reads."""
    if isinstance(item, Region):
        for mark in item.enters.values():
            yield from mark.all_input_nodes
        yield from item.taken
    else:
        yield from item.all_input_nodes


def _without_parameters(plan: Plan, tree: nn.Module) -> Iterator[fx.Node]:
    """Values that depend on sizes, buffers and integer inputs alone: cheap to make again, and without gradients."""
    written = {n.args[0] for n in plan.graph.nodes if is_inplace(n)}
    bound: set[fx.Node] = set()
    for node in plan.graph.nodes:
        if is_size(node) or mark_of(node).lifted:
            continue
        if node.op == "placeholder":
            value = node.meta.get("val")
            free = isinstance(value, torch.Tensor) and not value.is_floating_point()
        elif node.op == "get_attr":
            free = not isinstance(values.follow(tree, str(node.target)), nn.Parameter)
        else:
            free = node.op == "call_function" and not (is_new(node) or node in written or _acts(node))
            free = free and not any(operand in bound for operand in node.all_input_nodes)
        if free:
            yield node
        else:
            bound.add(node)


def _acts(node: fx.Node) -> bool:
    """Whether an operator does more than give a value, or not the same one each time."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return random or is_inplace(node) or node.target in (enter_grad_mode, exit_grad_mode)


class StageWriter(Writer):
    """Writes the code of one stage."""

    def __init__(self, cut: Cut, number: int, codes: dict[Region, Code]) -> None:
        super().__init__(cut.plan, cut.plan.root, cut.tree, "", codes)
        self.cut, self.number = cut, number
        self.takes = cut.borders.sent[number - 1] if number else []
        self.gives = cut.borders.sent[number]
        self.recalls, self.keeps = cut.borders.recalled[number], cut.borders.kept[number]
        self.inputs: dict[fx.Node, tuple[str, str]] = {}
        self.read: dict[str, fx.Node] = {}
        self.calls: list[str] = []
        self.tensors: list[str] = []

    def stage_code(self, shared: Shared) -> StageCode:
        """The stage's code.

        Raises:
            NotExpressible: naming the call that cannot be made.
        """
        code = self.write(shared)
        names = [self.cut.name_of(node) for node in self.gives]
        given = {} if self.number else self.arguments
        fixed = {name: t for name, t in given.items() if not (isinstance(t, tuple) and values.has_leaves(t))}
        return StageCode(
            code, fixed, self.takes, self.gives, self.recalls, self.cut.borders.dropped[self.number], self.keeps, names,
            self.read, self.calls, self.tensors, list(self.new),
        )  # fmt: skip

    def _begin(self) -> None:
        super()._begin()
        parameter = {text: name for name, t in self.arguments.items() if isinstance(t, tuple)
                     for _, text in values.leaves(t, name)}  # fmt: skip
        self.inputs = {n: (text, parameter[text]) for n, text in self.env.items() if text in parameter}
        if self.number:  # arguments of the model's own are named where they are read
            self.env = {node: self._fresh(self.cut.name_of(node)) for node in (*self.takes, *self.recalls)}

    def _head(self) -> str:
        if not self.number:
            return super()._head()
        read = [f"{name}=None" for name in self.read]
        given = [self.env[n] for n in (*self.takes, *self.recalls)]
        return ", ".join(["self", self.bank, self.beside, *given, *(["*", *read] if read else [])])

    def _items(self) -> list[Any]:
        return [i for i, stage in self.cut.stage.items() if stage == self.number and not self.cut.is_free(i)]

    def _return(self) -> str:
        nodes = [*self.gives, *self.keeps]
        if self.number == len(self.cut.starts):
            nodes = [m.args[0] for _, m in sorted(self.region.leaves.items())]  # type: ignore[misc]
        texts = [self._text(node) for node in nodes]
        return f"return {texts[0] if len(texts) == 1 else '(' + ', '.join(texts) + ')'}"

    def _node(self, node: fx.Node) -> str:
        if node in self.inputs:
            self.env[node], name = self.inputs[node]
            self.read[name] = node
        return super()._node(node)

    def _do(self, item: Any) -> None:
        at = self.cut.stage.get(item, self.number)
        if at != self.number and not self.cut.is_free(item):
            raise NotExpressible(f"{getattr(item, 'name', item)} in stage {self.number}, which is of stage {at}")
        super()._do(item)

    def _call(self, inner: Region) -> None:
        if inner.path is not None and inner.path not in self.calls:
            self.calls.append(inner.path)
        super()._call(inner)

    def _argument(self, inner: Region, template: Template) -> str:
        given = [inner.enters[slot].args[0] for slot, _ in values.leaves(template, "") if slot in inner.enters]
        strange = [n for n in given if isinstance(n, fx.Node) and not self._has(n)] if self.cut.is_free(inner) else []
        self.env |= {node: self._stand_in(node, inner) for node in strange}
        text = super()._argument(inner, template)
        for node in strange:
            del self.env[node]
        return text

    def _has(self, node: fx.Node) -> bool:
        return (node in self.env or node in self.inputs or node in self.cut.anywhere or is_size(node)
                or mark_of(node).lifted or node.op == "get_attr")  # fmt: skip

    def _stand_in(self, node: fx.Node, reader: Region) -> str:
        """A value at hand of the same sizes and type, or an empty one, for a call that reads nothing else of it."""
        for known, text in self.env.items():
            if _looks(known) == _looks(node):
                return text
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not self.takes:
            raise NotExpressible(f"{node} in stage {self.number}", reader)
        shown = [str(fixed) if size is None else self._read_off(size) for fixed, size in
                 zip(value.shape, values.sizes(node), strict=True)]  # fmt: skip
        if "" in shown:
            raise NotExpressible(f"the sizes of {node} in stage {self.number}", reader)
        return f"{self.env[self.takes[0]]}.new_empty((), dtype={value.dtype}).expand({', '.join(shown)})"

    def _attribute(self, node: fx.Node) -> str:
        target = str(node.target)
        if self.number and writers_of(self.plan, self.tree, target):
            raise NotExpressible(f"{target}, which the call replaces, in stage {self.number}")
        if target not in self.tensors:
            self.tensors.append(target)
        return super()._attribute(node)

    def _in_holding(self, node: fx.Node, places: tuple[Place, ...]) -> str:
        """A stage has no lists, dicts or objects of the model's: it takes the tensor that is there when it is made."""
        if any(map(self.plan.writers_at, places)):
            raise NotExpressible(f"{places[0]}, which the call replaces, in stage {self.number}")
        return self._global(places[0].find(self.tree), "constant")

    def _owned(self, paths: tuple[str, ...]) -> str:
        return self._global(values.follow(self.tree, paths[0]), paths[0].rpartition(".")[2])


def _looks(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return value.dtype, value.device, [str(size) for size in value.shape]
