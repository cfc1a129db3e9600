"""Who reads a state, and handing some of the readers something else: all, a branch, or attention's q, k and v."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

from torch import fx

from ..report import Site
from . import operators as ops
from .depth_chain import is_alias
from .index import Index

ROLES = ("q", "k", "v")


class Readers:
    """The readers of one state, behind casts that change nothing.

    Args:
        created: nodes of the rewrite itself, which keep what they read.
    """

    def __init__(self, graph: fx.Graph, state: fx.Node, index: Index, created: Collection[fx.Node]) -> None:
        self.graph, self.state, self.index, self.created = graph, state, index, created
        self.names = [state]
        for node in self.names:
            self.names += [u for u in node.users if u not in created and is_alias(u, node, index)]

    def edges(self) -> list[tuple[fx.Node, fx.Node]]:
        """Pairs (name of the state, reader)."""
        return [(n, u) for n in self.names for u in n.users if u not in self.created and u not in self.names]

    def redirect_all(self, new: fx.Node) -> None:
        """Every reader, the shortcut too."""
        for name, user in self.edges():
            user.replace_input_with(name, new)

    def redirect_branch(self, branches: Iterable[fx.Node], new: fx.Node) -> None:
        """The readers from which a branch is computed."""
        region = self.region(branches)
        for name, user in self.edges():
            if user in region:
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

    def redirect_roles(self, sites: list[Site], new: dict[str, fx.Node]) -> None:
        """``q``, ``k``, ``v`` to the attention's projections and ``r`` to the rest; what is missing keeps the state.

        What feeds one projection only is rewired; what feeds several (the norm, a fused projection) is copied.
        """
        uses, _ = attention_arguments(sites, self.index)
        region = self.region([s.branch for s in sites])
        mine = self._dependents(region)
        roles = self._roles(mine, uses)
        value: dict[tuple[fx.Node, str], fx.Node] = {
            (n, role): new.get(role, n) for n in self.names for role in (*ROLES, "r")
        }
        shortcut = [(n, u) for n, u in self.edges() if u not in mine]
        for node in mine:
            found = [r for r in ("r", *ROLES) if r in roles[node]]
            primary = found[0] if found else "r"
            for role in found[1:]:
                with self.graph.inserting_after(node):
                    twin = self.graph.node_copy(node, functools.partial(_lookup, value, role))
                twin.meta = dict(node.meta)
                value[node, role] = twin
            value[node, primary] = node
        for node in mine:
            found = [r for r in ("r", *ROLES) if r in roles[node]]
            primary = found[0] if found else "r"
            for x in node.all_input_nodes:
                if (kept := value.get((x, primary), x)) is not x and (node, x) not in self._consumed(uses):
                    node.replace_input_with(x, kept)
        for (consumer, place), role in uses.items():
            argument = consumer.args[place]
            assert isinstance(argument, fx.Node)
            consumer.update_arg(place, value.get((argument, role), argument))
        for name, user in shortcut:
            user.replace_input_with(name, new.get("r", name))

    def _dependents(self, region: set[fx.Node]) -> list[fx.Node]:
        """Nodes of the region that depend on the state, in order."""
        known, found = set(self.names), []
        for node in sorted(region):
            if node not in known and any(x in known for x in node.all_input_nodes):
                known.add(node)
                found.append(node)
        return found

    def _roles(self, nodes: list[fx.Node], uses: dict[tuple[fx.Node, int], str]) -> dict[fx.Node, set[str]]:
        """What each node feeds before the attention; nodes from the attention on feed ``r``."""
        consumers = {c for c, _ in uses}
        behind: set[fx.Node] = set()
        for node in nodes:
            if node in consumers or any(x in behind for x in node.all_input_nodes):
                behind.add(node)
        inside, roles = set(nodes), {n: set[str]() for n in nodes}
        for node in reversed(nodes):
            if node in behind:
                continue
            for user in node.users:
                if user in consumers:
                    roles[node] |= {uses.get((user, i), "r") for i, a in enumerate(user.args) if a is node} or {"r"}
                elif user in inside:
                    roles[node] |= {"r"} if user in behind else roles[user]
            if not roles[node]:
                roles[node] = {"r"}
        return roles

    @staticmethod
    def _consumed(uses: dict[tuple[fx.Node, int], str]) -> set[tuple[fx.Node, fx.Node]]:
        return {(c, a) for (c, i) in uses if isinstance(a := c.args[i], fx.Node)}


def _lookup(value: dict[tuple[fx.Node, str], fx.Node], role: str, node: fx.Node) -> fx.Node:
    return value.get((node, role), node)


def attention_arguments(sites: list[Site], index: Index) -> tuple[dict[tuple[fx.Node, int], str], str | None]:
    """Where a branch's attention takes its queries, keys and values: ``{(operator, argument): role}``, or a reason."""
    site = next((s for s in sites if s.kind == "attention"), None)
    if site is None:
        return {}, "the block does not open with attention: there are no q, k and v inputs to tell apart"
    if site.attention is not None and index.name[site.attention] == "scaled_dot_product_attention":
        return {(site.attention, i): role for i, role in enumerate(ROLES)}, None
    scores, values = _written_out(site, index)
    if scores is None or values is None:
        return {}, "its attention is not an operator that shows q, k and v"
    return {(scores, 0): "q", (scores, 1): "k", (values, 1): "v"}, None


def _written_out(site: Site, index: Index) -> tuple[fx.Node | None, fx.Node | None]:
    """The two products of ``softmax(q k^T) v``."""
    stack, seen = [site.branch], {site.branch}
    softmax = None
    while stack and softmax is None:
        node = stack.pop()
        if index.name.get(node) == "softmax":
            softmax = node
        for x in node.all_input_nodes:
            if x not in seen and x > site.fork:
                seen.add(x)
                stack.append(x)
    if softmax is None:
        return None, None
    scores = softmax
    for _ in range(12):
        if index.role[scores] == "matmul":
            break
        inputs = [x for x in index.data[scores] if not index.constant[x]]
        if not inputs:
            return None, None
        scores = inputs[0]
    values = softmax
    for _ in range(12):
        readers = [u for u in values.users if index.role.get(u) in ("matmul", "pass") or index.name.get(u) in ops.PASS]
        if not readers:
            return None, None
        values = readers[0]
        if index.role[values] == "matmul":
            break
    ok = all(n is not softmax and index.role[n] == "matmul" and len(n.args) >= 2 for n in (scores, values))
    return (scores, values) if ok else (None, None)
