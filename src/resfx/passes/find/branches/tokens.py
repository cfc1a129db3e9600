"""The token numbers that a stream begins with."""

from __future__ import annotations

from torch import fx, nn

from resfx.passes.find.graph import dtype, hint, shape
from resfx.passes.find.index import Index
from resfx.passes.find.mark import mark_of
from resfx.passes.find.site import Stream

NO_TOKENS = "the stream does not begin with token numbers of the call, read from one table"


def tokens_of(stream: Stream, index: Index, tree: nn.Module) -> tuple[fx.Node, int] | str:
    """``(batch, positions)`` integers among the call's arguments, and the rows of the table they are looked up in; or
    why there are none.

    Where several tables are read by arguments (segments, positions), it is the one that ``get_input_embeddings`` of
    the model names.
    """
    found: dict[fx.Node, tuple[fx.Node, int]] = {}
    stack = [stream.sites[0].root or stream.sites[0].fork]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if index.name[node] == "embedding" and len(node.all_input_nodes) == 2:
            table, numbers = node.all_input_nodes
            argument, rows = _argument(numbers, index), hint((shape(table) or (None,))[0])
            if argument is not None and rows is not None:
                found[table] = argument, rows
            continue
        fresh = [x for x in index.data[node] if x not in seen]
        seen.update(fresh)
        stack += fresh
    named = _input_table(tree)
    chosen = [place for table, place in found.items() if len(found) == 1 or str(table.target) in named]
    return chosen[0] if len(chosen) == 1 else NO_TOKENS


def _argument(numbers: fx.Node, index: Index) -> fx.Node | None:
    """The call's argument that a table is read by, as it is."""
    node = index.strip(numbers)
    whole = node.op == "placeholder" and not mark_of(node).lifted and len(shape(node) or ()) == 2
    kind = dtype(node)
    return node if whole and kind is not None and not kind.is_floating_point else None


def _input_table(tree: nn.Module) -> set[str]:
    """The names of the table that a model says its inputs are read from; those of all where it is tied."""
    try:
        table = tree.get_input_embeddings().weight  # type: ignore[operator,union-attr]
    except (AttributeError, NotImplementedError):
        return set()
    return {name for name, p in tree.named_parameters(remove_duplicate=False) if p is table}
