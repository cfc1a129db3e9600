"""Segments as functions: equal segments have equal code, and everything that differs between them is an argument."""

from __future__ import annotations

import linecache
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from resfx._torch import OpOverload, schema_of, share_codegen
from resfx.ops.chunks import SIZES
from resfx.passes.find import operators as ops

from .regroup import Segment

Key = tuple[Any, ...]
Wrap = Callable[["Outlined"], Callable[..., Any]]

_SMALL = 2
"""Segments of fewer operators stay where they are; a module is more than that."""


def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module that was handed in."""
    return module(*args, **kwargs)


@dataclass(eq=False)
class Outlined:
    """A segment as a function of tensors, modules and sizes.

    Attributes:
        inputs: nodes of the flat graph whose values are its arguments, in order; a module call stands for the module.
        outputs: nodes whose values it returns: one value, or a tuple.
        function: one object for all segments with this code.
        written: places among ``inputs`` of tensors that it overwrites.
        repeats: whether it may be run again on what it has overwritten: only running statistics are.
    """

    segment: Segment
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)
    function: Callable[..., Any] = lambda: None
    written: list[int] = field(default_factory=list)
    repeats: bool = True


@dataclass(eq=False)
class Regrouped:
    """A graph as a function that calls one function per segment."""

    parts: list[Outlined]
    source: str
    scope: dict[str, Any]
    names: dict[str, Outlined]

    def bind(self, wrap: Wrap) -> Callable[..., Any]:
        """The graph as a function of the module tree and its inputs, each segment run by what ``wrap`` makes of it."""
        scope = self.scope | {name: wrap(part) for name, part in self.names.items()}
        exec(_compiled(self.source, f"<resfx blocks {id(self)}>"), scope)
        return scope["forward"]


def outline(graph: fx.Graph, segments: Sequence[Segment], functions: dict[Key, Callable[..., Any]]) -> Regrouped:
    """Make every segment a function.

    Args:
        functions: those that exist; equal code is found here and shared, new code is added.
    """
    home = {node: segment for segment in segments for node in segment.nodes}
    cut = any(map(_is_long, segments))
    parts = {s: Outlined(s) for s in segments if _worth_a_function(s, cut)}
    bodies = {s: _Body(s, home) for s in parts}
    needed = _needed(graph, bodies, home)
    for segment, part in parts.items():
        body = bodies[segment]
        part.inputs, part.outputs = body.inputs, [n for n in segment.nodes if n in needed]
        part.function = body.function(part.outputs, functions)
        part.written, part.repeats = _writes(segment, part.inputs)
    return _main(graph, home, parts)


def _worth_a_function(segment: Segment, cut: bool) -> bool:
    if segment.read and cut:  # reads are compiled in chunks, by themselves; the chunks of long ones serve short ones
        return False
    if any(n.op == "call_module" for n in segment.nodes):
        return True
    return sum(ops.operator_name(n) not in ("getitem", "sym_size") for n in segment.nodes) >= _SMALL


def _is_long(segment: Segment) -> bool:
    lists = [a for n in segment.nodes if n.op == "call_module" for a in n.args if isinstance(a, (list, tuple))]
    return segment.read and any(len(sources) > SIZES[0] for sources in lists)


class _Body:
    """The code of one segment. Names depend on nothing but the order of its nodes."""

    def __init__(self, segment: Segment, home: dict[fx.Node, Segment]) -> None:
        self.segment, self.home = segment, home
        self.graph = fx.Graph()
        self.inputs: list[fx.Node] = []
        self.sizes: dict[fx.Node, fx.Node] = {}
        inside = set(segment.nodes)
        wanted = [n for node in segment.nodes for n in self._reads(node) if n is node or n not in inside]
        tensors = [n for n in dict.fromkeys(wanted) if not _is_size(n)]
        self.env: dict[fx.Node, fx.Node] = {}
        for node in tensors:
            self._argument(node)
        # Sizes are read from the tensors at hand: a compiler then knows that they agree.
        given = [n for n in reversed(tensors) if n not in inside]
        self.found = {expr: (n, i) for n in given for i, expr in reversed(_axes(n))}
        sizes = [n for n in dict.fromkeys(wanted) if _is_size(n)]
        for node in sizes:
            if not self._derivable(node):
                self._argument(node)
        for node in sizes:
            self._size(node)
        for number, node in enumerate(segment.nodes):
            self.env[node] = self._copy(node, f"v{number}")

    @staticmethod
    def _reads(node: fx.Node) -> list[fx.Node]:
        return [*([node] if node.op == "call_module" else []), *node.all_input_nodes]

    def _argument(self, node: fx.Node) -> None:
        # The module that a call inside this segment calls is an argument, under the call's own node.
        held = self.graph.placeholder(f"a{len(self.inputs)}")
        self.inputs.append(node)
        self.env[node] = held

    def _derivable(self, node: fx.Node) -> bool:
        if node in self.env or _expr(node) in self.found:
            return True
        scalars = node.op == "call_function" and node.all_input_nodes
        return bool(scalars) and all(_is_size(n) and self._derivable(n) for n in node.all_input_nodes)

    def _size(self, node: fx.Node) -> fx.Node:
        if node not in self.env:
            name = f"s{len(self.sizes)}"
            if (place := self.found.get(_expr(node))) is not None:
                args = (self.env[place[0]], place[1])
                made = self.graph.create_node("call_function", torch.ops.aten.sym_size.int, args, name=name)
            else:
                inner = {n: self._size(n) for n in node.all_input_nodes}
                made = self.graph.node_copy(node, inner.__getitem__)
            self.env[node] = self.sizes[node] = made
        return self.env[node]

    def _copy(self, node: fx.Node, name: str) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.env.__getitem__)
        if node.op == "call_module":
            return self.graph.create_node("call_function", call, (self.env[node], *args), kwargs, name=name)
        return self.graph.create_node(node.op, node.target, args, kwargs, name=name)

    def function(self, outputs: list[fx.Node], functions: dict[Key, Callable[..., Any]]) -> Callable[..., Any]:
        """The segment as a function, shared with every other of the same code."""
        results = [self.env[n] for n in outputs]
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        code = self.graph.python_code("self")
        key = (code.src, *sorted((name, id(value)) for name, value in code.globals.items()))
        if key not in functions:
            kind = "block" if self.segment.block else "part"
            name = f"{kind}_{len(functions)}"
            source = re.sub(r"def forward\(self(, )?", f"def {name}(", code.src, count=1)
            scope: dict[str, Any] = dict(code.globals)
            exec(_compiled(source, f"<resfx {name} {id(functions)}>"), scope)
            functions[key] = scope[name]
        return functions[key]


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


def _expr(node: fx.Node) -> Any:
    return getattr(getattr(node.meta.get("val"), "node", None), "expr", None)


def _axes(node: fx.Node) -> list[tuple[int, Any]]:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return []
    sizes: list[Any] = list(value.shape)
    return [(i, size.node.expr) for i, size in enumerate(sizes) if isinstance(size, torch.SymInt)]


def _needed(graph: fx.Graph, bodies: dict[Segment, _Body], home: dict[fx.Node, Segment]) -> set[fx.Node]:
    """Nodes whose values leave the function they are computed in."""
    needed = {n for segment, body in bodies.items() for n in body.inputs if home.get(n) is not segment}
    for node in graph.nodes:
        if home.get(node) not in bodies:
            needed.update(node.all_input_nodes)
    return needed


def _main(graph: fx.Graph, home: dict[fx.Node, Segment], parts: dict[Segment, Outlined]) -> Regrouped:
    main = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    stubs: dict[Callable[..., Any], Outlined] = {}

    def value(node: fx.Node) -> fx.Node:
        if node.op == "get_attr":  # read where it is used, at every call
            return main.get_attr(str(node.target))
        return env[node]

    def argument(part: Outlined, node: fx.Node) -> fx.Node:
        return main.get_attr(str(node.target)) if home.get(node) is part.segment else value(node)

    done: set[Segment] = set()
    for node in graph.nodes:
        segment = home.get(node)
        part = parts.get(segment) if segment else None
        if part is None:
            if node.op == "output":
                main.output(fx.node.map_arg(node.args[0], value))
            elif node.op != "get_attr":
                env[node] = main.node_copy(node, value)
        elif part.segment not in done:
            done.add(part.segment)
            stub = _stub(f"segment_{len(stubs)}")
            stubs[stub] = part
            result = main.call_function(stub, tuple(argument(part, n) for n in part.inputs))
            several = len(part.outputs) > 1
            for place, out in enumerate(part.outputs):
                env[out] = main.call_function(operator.getitem, (result, place)) if several else result
    for node in reversed(main.nodes):
        if _is_size(node) and not node.users and node.op != "placeholder":
            main.erase_node(node)
    share_codegen(main, graph)
    code = main.python_code("self")
    names = {name: stubs[value] for name, value in code.globals.items() if value in stubs}
    return Regrouped(list(parts.values()), code.src, dict(code.globals), names)


def _stub(name: str) -> Callable[..., Any]:
    """What stands for a segment in the generated code until it is bound."""

    def stub(*args: Any) -> Any:
        raise AssertionError(f"{name} is not bound")

    stub.__name__ = stub.__qualname__ = name
    return stub


def _compiled(source: str, filename: str) -> Any:
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    return compile(source, filename, "exec")


def _writes(segment: Segment, inputs: list[fx.Node]) -> tuple[list[int], bool]:
    """Which inputs a segment overwrites, and whether all of them are running statistics, which nothing in it reads."""
    inside = set(segment.nodes)
    written: list[int] = []
    repeats = True
    for node in segment.nodes:
        for target, statistic in _targets(node):
            base = _base(target, inside)
            if base not in inside:
                repeats = repeats and statistic
                written += [i for i, n in enumerate(inputs) if n is base]
    return sorted(set(written)), repeats


def _base(node: fx.Node, inside: set[fx.Node]) -> fx.Node:
    """The tensor that a node is a view of, as far as this segment sees."""
    while node in inside and node.op != "call_module" and node.all_input_nodes and _is_view(node):
        node = node.all_input_nodes[0]
    return node


def _targets(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """Tensors that a node overwrites, and whether each is a running statistic."""
    name = ops.operator_name(node)
    if name == "batch_norm" and len(node.args) > 5 and node.args[5] is True:
        yield from [(n, True) for n in node.args[3:5] if isinstance(n, fx.Node)]
    elif isinstance(node.target, OpOverload):
        arguments = schema_of(node.target).arguments
        for spec, value in zip(arguments, node.args, strict=False):
            if spec.alias_info is not None and spec.alias_info.is_write and isinstance(value, fx.Node):
                yield value, name == "add" and str(value.target).endswith("num_batches_tracked")
    elif ops.is_inplace(node) and isinstance(node.args[0], fx.Node):
        yield node.args[0], False


def _is_view(node: fx.Node) -> bool:
    if isinstance(node.target, OpOverload):
        return any(a.alias_info is not None for a in schema_of(node.target).arguments)
    return True  # unknown: as good as one
