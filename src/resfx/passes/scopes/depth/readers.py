"""Who reads a state, and handing some of the readers something else: all, a branch, or attention's q, k and v."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence

from torch import fx

from resfx.passes.capture.marking.record import enter
from resfx.passes.find import operators as ops
from resfx.passes.find.branches.attention import attention_operands
from resfx.passes.find.index import Index
from resfx.passes.find.mark import mark_of
from resfx.passes.find.site import Site

from .chain import is_alias

ROLES = ("q", "k", "v")


class Readers:
    """The readers of one state, behind casts that change nothing.

    A module that reads the state is one reader, unless it holds all of ``sites`` and their branches: then those inside
    it are told apart.

    Args:
        created: nodes of the rewrite itself, which keep what they read.
        sites: adds of the sublayer behind the state, where its branch and its shortcut are to read different things.
    """

    def __init__(
        self, graph: fx.Graph, state: fx.Node, index: Index, created: Collection[fx.Node], sites: Collection[Site] = ()
    ) -> None:
        self.graph, self.state, self.index, self.created = graph, state, index, created
        self.names = [state]
        sublayer = self.region(s.branch for s in sites) | {s.node for s in sites}
        for node in self.names:
            inside = [u for u in node.users if u in sublayer]
            self.names += [
                u for u in node.users
                if u not in created and is_alias(u, node, index)
                and (u.target is not enter or (inside == [u] and _holds(u, sites)))
            ]  # fmt: skip

    @property
    def inner(self) -> fx.Node:
        """The state as the module knows it in which branch and shortcut part."""
        return max([self.state, *(n for n in self.names[1:] if n.target is enter)])

    def edges(self) -> list[tuple[fx.Node, fx.Node]]:
        """Pairs (name of the state, reader)."""
        return [(n, u) for n in self.names for u in n.users if u not in self.created and u not in self.names]

    def redirect_all(self, new: fx.Node) -> None:
        """Every reader behind the new value, the shortcut too."""
        for name, user in self.edges():
            if user > new:
                user.replace_input_with(name, new)

    def redirect_branch(self, branches: Iterable[fx.Node], new: fx.Node) -> None:
        """The readers from which a branch is computed."""
        region = self.region(branches)
        for name, user in self.edges():
            if user in region and user > new:
                user.replace_input_with(name, new)

    def region(self, branches: Iterable[fx.Node]) -> set[fx.Node]:
        """Everything between the state and the branches."""
        stack = [b for b in branches if b > self.state]
        seen = set(stack)
        while stack:
            for x in stack.pop().all_input_nodes:
                if x > self.state and x not in seen:
                    seen.add(x)
                    stack.append(x)
        return seen

    def redirect_roles(self, sites: Sequence[Site], new: dict[str, fx.Node]) -> None:
        """``q``, ``k``, ``v`` to the attention's projections and ``r`` to the rest; what is missing keeps the state.

        What feeds one projection only is rewired; what feeds several (the norm, a fused projection) is copied.
        """
        mine = self._dependents(sites)
        operands = self.attention(sites)
        assert isinstance(operands, dict)
        roles = self._roles(mine, operands)
        value: dict[tuple[fx.Node, str], fx.Node] = {
            (n, role): new.get(role, n) for n in self.names for role in (*ROLES, "r")
        }
        others = [(name, user) for name, user in self.edges() if user not in roles]
        for node in mine:
            first, *more = roles[node]
            for role in more:
                with self.graph.inserting_after(node):
                    twin = self.graph.node_copy(node, functools.partial(_lookup, value, role))
                twin.meta = dict(node.meta)
                value[node, role] = twin
            value[node, first] = node
        for node in mine:
            for x in node.all_input_nodes:
                if (kept := value.get((x, roles[node][0]), x)) is not x:
                    node.replace_input_with(x, kept)
        for name, user in others:
            if "r" in new and user > new["r"]:
                user.replace_input_with(name, new["r"])

    def attention(self, sites: Sequence[Site]) -> dict[fx.Node, str] | str:
        """The queries, keys and values of the branch that has attention, or why they cannot be told apart."""
        mine = self._dependents(sites)
        parts = attention_operands(set(mine), self.index) if any(s.kind == "attention" for s in sites) else None
        if parts is None:
            return "the block does not open with attention: there are no q, k and v inputs to tell apart"
        operands = dict(zip(parts[1:4], ROLES, strict=True))
        if len(operands) < 3 or not all(n in mine for n in operands):
            return "its attention does not take queries, keys and values from three projections of the stream"
        roles = self._roles(mine, operands)
        if any(ops.is_inplace(n) and found != ["r"] for n, found in roles.items()):
            return "it overwrites tensors in place before attention: they cannot be read from several inputs"
        if any(mark_of(n).method and n.op == "call_module" and len(found) > 1 for n, found in roles.items()):
            return "a token mixer stands before several of q, k and v: it would need a state for each"
        return operands

    def _dependents(self, sites: Sequence[Site]) -> list[fx.Node]:
        """Nodes of the branches that depend on the state, in order."""
        known, found = set(self.names), []
        for node in sorted(self.region(s.branch for s in sites)):
            if node not in known and any(x in known for x in node.all_input_nodes):
                known.add(node)
                found.append(node)
        return found

    @staticmethod
    def _roles(nodes: list[fx.Node], operands: dict[fx.Node, str]) -> dict[fx.Node, list[str]]:
        """What each node feeds of ``q``, ``k`` and ``v``, else ``r``; the first of them keeps the node itself."""
        feeds: dict[fx.Node, set[str]] = {}
        for node in reversed(nodes):
            feeds[node] = {operands[node]} if node in operands else set()
            for user in node.users:
                if node not in operands and user in feeds:
                    feeds[node] |= feeds[user]
            feeds[node] = feeds[node] or {"r"}
        return {n: [r for r in ("r", *ROLES) if r in feeds[n]] for n in nodes}


def _holds(mark: fx.Node, sites: Collection[Site]) -> bool:
    """Whether the call that a mark leads into makes all of the adds."""
    call = mark.meta.get("call")
    return bool(sites) and all(s.node.meta["call"].is_in(call) for s in sites)


def _lookup(value: dict[tuple[fx.Node, str], fx.Node], role: str, node: fx.Node) -> fx.Node:
    return value.get((node, role), node)
