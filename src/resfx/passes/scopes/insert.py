"""Putting new nodes into a graph."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from resfx._torch import OpOverload, overload_name, schema_of
from resfx.passes.capture.marking.record import enter, leave
from resfx.passes.find.mark import KEY, Mark, note
from resfx.passes.find.operators import is_inplace


@contextmanager
def inserting_behind(graph: fx.Graph, node: fx.Node) -> Iterator[list[fx.Node]]:
    """New nodes go behind ``node`` in the order in which they are made; afterwards the list has them all."""
    made: list[fx.Node] = []
    with graph.inserting_after(node):
        anchor = graph.call_function(_never_run)
    try:
        with graph.inserting_before(anchor):
            yield made
        step = node.next
        while step is not anchor:
            made.append(step)
            step = step.next
    finally:
        graph.erase_node(anchor)


def _never_run() -> None:
    """Target of the node before which others are put."""


def dress(node: fx.Node, like: fx.Node, mark: Mark, *dropped: str) -> None:
    """Give a new node what is known of another (its module, its source line, its type unless it has its own), without
    some, and a mark. Only a call of a module has a role."""
    own = {k: v for k, v in node.meta.items() if k == "val"}
    node.meta = {k: v for k, v in like.meta.items() if k != "from_node" and k not in dropped} | own
    node.meta[KEY] = mark if node.op == "call_module" else dataclasses.replace(mark, role="")


def take_over(old: fx.Node, new: fx.Node, *keep: fx.Node) -> None:
    """Let ``new`` stand for ``old`` wherever it is read but in ``keep``, and where objects of the host hold it."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in keep)
    note(old, now=new)


def is_overwritten(node: fx.Node, behind: fx.Node) -> bool:
    """Whether a tensor, or what it is a view of, is written into after a place in the graph."""
    while _hands_on(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    seen, waiting = {node}, [node]
    while waiting:
        value = waiting.pop()
        for user in value.users:
            if is_inplace(user) and user.args[0] is value and user > behind:
                return True
            if user not in seen and user.args[:1] == (value,) and _hands_on(user):
                seen.add(user)
                waiting.append(user)
    return False


def _hands_on(node: fx.Node) -> bool:
    """Whether a node gives its first operand, or a view of it."""
    if node.target in (enter, leave):
        return True
    return isinstance(node.target, OpOverload) and any(r.alias_info for r in schema_of(node.target).returns)


_OWN: dict[Any, Any] = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
                       operator.itruediv: operator.truediv}  # fmt: skip


def out_of_place(node: fx.Node) -> None:
    """Make an in-place operator write a tensor of its own: what it overwrote is still to be read."""
    if not is_inplace(node):
        return
    target = node.target
    if isinstance(target, OpOverload):
        packet = getattr(torch.ops.aten, schema_of(target).name.split("::")[-1].removesuffix("_"))
        node.target = getattr(packet, overload_name(target))
    elif node.op == "call_method":
        node.target = str(target).removesuffix("_")
    else:
        node.target = _OWN[target]
