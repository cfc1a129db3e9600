"""Turning the graph of an exported program into one flat function over the user's own module tree.

Parameters are read from the tree by their own names at every call. Whatever the tree does not hold (lifted
constants, leftover subgraphs) becomes a trailing placeholder. Nested grad-mode and autocast regions are inlined
between a pair of calls, so that every later pass sees one level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import has_side_effect

from resfx._torch import OpOverload, enter_autocast, exit_autocast, overload_name, schema_of, set_grad_enabled
from resfx.passes.find.mark import note
from resfx.passes.find.operators import is_inplace, operator_name
from resfx.passes.holdings import Place
from resfx.passes.tensors import memory_at

_SAVED = frozenset("softmax _softmax log_softmax sigmoid tanh exp sqrt rsqrt".split())
_NOISE = {"_assert_tensor_metadata", "_guards_fn"}


def enter_grad_mode(enabled: bool) -> bool:
    """Set grad mode and return what it was."""
    before = torch.is_grad_enabled()
    set_grad_enabled(enabled)
    return before


def exit_grad_mode(before: bool) -> None:
    """Put grad mode back."""
    set_grad_enabled(before)


for _act in (enter_grad_mode, exit_grad_mode, enter_autocast, exit_autocast):
    has_side_effect(_act)  # they stay though nothing reads what they give


def flatten_graph(
    module: fx.GraphModule, tree: nn.Module, places: Callable[[Any], tuple[Place, ...]]
) -> tuple[fx.Graph, list[Any]]:
    """The graph of ``module`` with ``tree`` as its attribute root, and the values of its extra placeholders.

    Args:
        places: of a tensor, where the tree has it in a list, dict or object.
    """
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    _copy_into(graph, module, env)
    outputs = fx.node.map_arg(_output(module.graph), lambda n: env[n])
    graph.output(outputs)
    _drop_unused_attributes(graph)
    _keep_saved_results(graph)
    _drop_copies_of_itself(graph)
    return graph, _lift_constants(graph, module, tree, places)


def _output(graph: fx.Graph) -> Any:
    return graph.output_node().args[0]


def _copy_into(graph: fx.Graph, module: fx.GraphModule, env: dict[fx.Node, Any]) -> None:
    for node in module.graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        if node.op == "output" or name.split(".")[0] in _NOISE:
            continue
        if name == "wrap_with_set_grad_enabled":
            env[node] = _inline_grad_mode(graph, module, node, env)
        elif name == "wrap_with_autocast":
            env[node] = _inline_autocast(graph, module, node, env)
        elif _getitem_of_tuple(node, env):
            env[node] = env[node.args[0]][node.args[1]]
        elif node not in env:
            env[node] = graph.node_copy(node, lambda n: env[n])


def _getitem_of_tuple(node: fx.Node, env: dict[fx.Node, Any]) -> bool:
    return (
        node.op == "call_function"
        and getattr(node.target, "__name__", "") == "getitem"
        and isinstance(env.get(node.args[0]), (tuple, list))  # type: ignore[arg-type]
    )


def _inline_region(graph: fx.Graph, body: fx.GraphModule, operands: list[Any]) -> Any:
    env: dict[fx.Node, Any] = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), operands, strict=True))
    _copy_into(graph, body, env)
    return fx.node.map_arg(_output(body.graph), lambda n: env[n])


def _inline_grad_mode(graph: fx.Graph, module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    enabled, body, *operands = node.args
    token = graph.call_function(enter_grad_mode, (enabled,))
    result = _inline_region(graph, _submodule(module, body), [fx.node.map_arg(a, lambda n: env[n]) for a in operands])
    graph.call_function(exit_grad_mode, (token,))
    return result


def _inline_autocast(graph: fx.Graph, module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    device, dtype, enabled, cache, body, *operands = node.args
    token = graph.call_function(enter_autocast, (device, dtype, enabled, cache))
    result = _inline_region(graph, _submodule(module, body), [fx.node.map_arg(a, lambda n: env[n]) for a in operands])
    graph.call_function(exit_autocast, (token,))
    return result


def _submodule(module: fx.GraphModule, node: Any) -> fx.GraphModule:
    found = module.get_submodule(node.target)
    assert isinstance(found, fx.GraphModule)
    return found


def _drop_unused_attributes(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _keep_saved_results(graph: fx.Graph) -> None:
    """An in-place write over a result that autograd keeps becomes a new tensor, where nothing reads the old one later.

    Only the ``forward`` of an ``autograd.Function`` may write so; captured, it is differentiated like any code.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node, place in order.items():
        source = node.args[0] if node.args else None
        if not (isinstance(source, fx.Node) and is_inplace(node) and operator_name(source) in _SAVED):
            continue
        target = node.target
        if isinstance(target, OpOverload) and all(order[u] <= place for u in source.users):
            packet = getattr(torch.ops.aten, schema_of(target).name.split("::")[-1][:-1])
            node.target = getattr(packet, overload_name(target))


def _drop_copies_of_itself(graph: fx.Graph) -> None:
    """``self.n += 1`` writes a buffer and then sets it to what it is: a tracer takes the second for a copy."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.aten.copy_.default:
            continue
        place, source = node.args[:2]
        while isinstance(source, fx.Node) and source is not place and is_inplace(source):
            source = source.args[0]
        if source is place or _attribute(source) == _attribute(place) != "":
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)


def _attribute(node: Any) -> str:
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else ""


def _lift_constants(
    graph: fx.Graph, module: fx.GraphModule, tree: nn.Module, places: Callable[[Any], tuple[Place, ...]]
) -> list[Any]:
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    first = next(iter(graph.nodes))
    constants: list[Any] = []
    by_target: dict[str, fx.Node] = {}
    names: dict[Any, str] = {place: n for n, p in tree.named_parameters() if (place := memory_at(p)) is not None}
    for node in list(graph.nodes):
        if node.op != "get_attr" or resolves(tree, node.target):
            continue
        # A parameter reached on another way than the tree's (a patched forward): the tracer lifts it detached.
        if (name := names.get(memory_at(resolve(module, node.target)))) is not None:
            node.target = name
            continue
        if node.target not in by_target:
            anchor = placeholders[-1] if placeholders else first
            with graph.inserting_after(anchor) if placeholders else graph.inserting_before(anchor):
                constant = graph.placeholder(f"constant_{len(constants)}")
            placeholders.append(constant)
            constant.meta.update(node.meta)
            constants.append(resolve(module, node.target))
            note(constant, lifted=True, held=places(constants[-1]))
            by_target[node.target] = constant
        node.replace_all_uses_with(by_target[node.target])
        graph.erase_node(node)
    return constants


def resolve(root: Any, target: str) -> Any:
    """Follow a dotted path from ``root``."""
    for part in target.split("."):
        root = getattr(root, part)
    return root


def resolves(root: Any, target: str) -> bool:
    """Whether a dotted path leads anywhere from ``root``."""
    try:
        resolve(root, target)
    except AttributeError:
        return False
    return True
