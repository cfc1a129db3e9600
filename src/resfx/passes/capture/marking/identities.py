"""Operators that give back the very tensor they were given, such as a conversion to the type it has.

A tracer knows tensors by their objects, and so calls the operand by the operator's name from then on, also where the
model's Python still holds the operand itself: in other calls, to which nothing of this one was handed.
"""

from __future__ import annotations

from torch import fx

from resfx._torch import OpOverload, schema_of

from .record import CallRecord, enter, leave

_NAMES = {"aten::to", "aten::contiguous", "aten::type_as", "aten::resolve_conj", "aten::resolve_neg"}


def restore_operands(graph: fx.Graph, calls: dict[int, CallRecord]) -> None:
    """Let whatever stands outside of the call that made such an operator read its operand."""
    for node in graph.nodes:
        if not _gives_back(node):
            continue
        for user in list(node.users):
            if not _reader(user, calls).is_in(node.meta["call"]):
                user.replace_input_with(node, node.args[0])


def _gives_back(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload) or schema_of(node.target).name not in _NAMES:
        return False
    names = [a.name for a in schema_of(node.target).arguments]
    if {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get("copy"):
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return (before.dtype, before.device, before.stride()) == (after.dtype, after.device, after.stride())


def _reader(user: fx.Node, calls: dict[int, CallRecord]) -> CallRecord:
    """The call in whose code a node's operands are read: marks stand on a border."""
    if user.target is leave:
        return calls[user.args[1]]  # type: ignore[index]
    if user.target is enter:
        return calls[user.args[1]].outer or user.meta["call"]  # type: ignore[index]
    return user.meta["call"]
