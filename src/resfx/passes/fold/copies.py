"""Calls that a method copied: a read for queries and another for keys runs the norm before both twice."""

from __future__ import annotations

import dataclasses

from torch import fx

from resfx.passes.capture.marking.record import CallRecord, enter, leave


def separate_copies(graph: fx.Graph, calls: dict[int, CallRecord]) -> set[CallRecord]:
    """Give every copy of a call a record of its own; returns the new records. ``calls`` is added to.

    A copied call shows by a mark that is there twice. The nodes between its copies of the marks are its own; a call
    whose copies share nodes loses its marks, and its operators belong to the code around it.
    """
    made: set[CallRecord] = set()
    for call in list(calls.values()):
        marks = _marks(graph, call)
        if max(map(len, marks.values()), default=0) < 2:
            continue
        leaves = [n for (side, _), found in marks.items() if side is leave for n in found]
        slots = {slot for side, slot in marks if side is leave}
        if len(leaves) == len(slots):  # one call that is handed several things where it was handed one
            for (side, _), found in marks.items():
                for node in found[1:] if side is enter else ():
                    _remove(graph, node)
        elif len(slots) == 1:
            for node in leaves[1:]:
                twin = dataclasses.replace(call, number=max(calls) + 1, writes=[])
                calls[twin.number] = twin
                made.add(twin)
                _take_over(node, call, twin, calls, made)
        else:
            for found in marks.values():
                for node in found:
                    _remove(graph, node)
    return made


def _remove(graph: fx.Graph, mark: fx.Node) -> None:
    mark.replace_all_uses_with(mark.args[0])  # type: ignore[arg-type]
    graph.erase_node(mark)


def _marks(graph: fx.Graph, call: CallRecord) -> dict[tuple[object, int], list[fx.Node]]:
    found: dict[tuple[object, int], list[fx.Node]] = {}
    for node in graph.nodes:
        if node.target in (enter, leave) and node.args[1] == call.number:
            found.setdefault((node.target, int(node.args[2])), []).append(node)  # type: ignore[arg-type]
    return found


def _take_over(
    last: fx.Node, call: CallRecord, twin: CallRecord, calls: dict[int, CallRecord], made: set[CallRecord]
) -> None:
    """Everything between a copy's marks belongs to the copy, calls inside it too."""
    inner: dict[int, CallRecord] = {call.number: twin}
    stack, seen = [last], {last}
    while stack:
        node = stack.pop()
        if node.target in (enter, leave):
            number = int(node.args[1])  # type: ignore[arg-type]
            if number not in inner:
                outer = calls[number].outer
                around = inner.get(outer.number, outer) if outer is not None else None
                inner[number] = dataclasses.replace(calls[number], number=max(calls) + 1, outer=around)
                calls[inner[number].number] = inner[number]
                made.add(inner[number])
            node.args = (node.args[0], inner[number].number, node.args[2])
        if "call" in node.meta:
            node.meta["call"] = inner.get(node.meta["call"].number, node.meta["call"])
        if node.target is enter and node.args[1] == twin.number:
            continue
        for x in node.all_input_nodes:
            if x not in seen and x.op not in ("placeholder", "get_attr"):
                seen.add(x)
                stack.append(x)
