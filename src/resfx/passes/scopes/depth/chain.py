"""A stream as the depth methods see it: steps that each read a state and hand on the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torch import fx

from resfx.passes.capture.marking.record import enter, keep, leave
from resfx.passes.find.branches.features import axis_behind, norm_output
from resfx.passes.find.graph import dtype, same_shape
from resfx.passes.find.index import Index
from resfx.passes.find.site import Site, Stream


@dataclass(eq=False)
class Step:
    """One sublayer: the add, or the adds of parallel branches that start from one state.

    Attributes:
        state: what the sublayer's branches and shortcut read.
        into: what the shortcut reads, once a read may have replaced it.
        after: the node that carries the stream behind the add.
    """

    sites: list[Site]
    state: fx.Node
    into: fx.Node
    after: fx.Node


@dataclass(eq=False)
class Chain:
    """The steps of one stream in order.

    Attributes:
        end: what reads the stream after its last step.
        post_norm: a norm, or an activation as in a ResNet, follows every add: the stream is not the sum of what was
            added.
    """

    steps: list[Step]
    end: fx.Node
    post_norm: bool
    blocks: list[list[Step]] = field(default_factory=list)


def chain_of(stream: Stream, index: Index, results: Mapping[str, fx.Node | None]) -> Chain | str:
    """The chain of a stream, or why it is none.

    Args:
        results: by the name of an add that was replaced, the node that carries the stream behind it.
    """
    sites = [s for s in stream.sites if not s.is_outer]
    opening = sites[:1] if sites and sites[0].form in ("projection", "resampled") else []
    sites = sites[len(opening) :]  # the stream begins with the state behind the add that changes its basis
    if not sites:
        return "no sublayer reads a state of this stream"
    replaced = {s.node: result for s in stream.sites if (result := results.get(s.name)) is not None}

    def current(node: fx.Node) -> fx.Node:
        return replaced.get(node, node)

    groups: list[list[Site]] = []
    for site in sites:
        if groups and site.form == "parallel" and site.fork is groups[-1][0].fork:
            groups[-1].append(site)
        else:
            groups.append([site])
    post_norm = sum(g[0].context is g[0].fork for g in groups) * 2 > len(groups)
    steps: list[Step] = []
    ways: list[set[str]] = []
    for group in groups:
        fork = _laid_out(current(group[0].fork), group[0], index)
        for after in [steps[-1].after] if steps else [current(s.node) for s in opening]:
            way = _way(fork, after, index)
            if way is None and steps:
                return f"{group[0].name} does not continue the state of the add before it"
            ways.append(way or set())
        state = _advance(fork, index)
        steps.append(Step(group, state, state, current(group[-1].node)))
    post_norm = post_norm or sum(bool(way & {"norm", "act"}) for way in ways) * 2 > len(ways)
    end = _advance(_behind(sites[-1], steps[-1].after, index) if post_norm else steps[-1].after, index)
    for state in [*(s.state for s in steps[1:]), end]:
        if same_shape(state, steps[0].state) is not True or dtype(state) != dtype(steps[0].state):
            return "its states have several shapes or types"
    chain = Chain(steps, end, post_norm)
    names = [s.sites[0].block for s in steps]
    again = any(a != b and b in names[: i + 1] for i, (a, b) in enumerate(pairwise(names)))  # layers that share weights
    for i, step in enumerate(steps):
        if i == 0 or (names[i] != names[i - 1] and (not again or names[i] == names[0])):
            chain.blocks.append([])
        chain.blocks[-1].append(step)
    return chain


def _way(node: fx.Node, target: fx.Node, index: Index) -> set[str] | None:
    """The roles of what leads from ``target`` to ``node``; ``None`` if that is more than norms, activations and
    rearranging."""
    roles: set[str] = set()
    for _ in range(16):
        if node is target:
            return roles
        inputs = [x for x in index.data.get(node, ()) if not index.constant[x]]
        if not inputs:
            return None
        role = index.role[node]
        if role not in ("pass", "norm", "act", "scale") and not (index.name[node] == "add" and len(inputs) == 1):
            return None
        roles.add(role)
        node = inputs[0]
    return None


def _advance(node: fx.Node, index: Index) -> fx.Node:
    """Down through casts and dropout that all readers share, out of the modules that computed it; never to a place
    inside a module that does more."""
    found, inside = node, set()
    while len(users := [u for u in node.users if not _unread(u)]) == 1:
        (user,) = users
        if not _hands_on(user, node, index):
            break
        if user.target is enter:
            inside.add(user.args[1])
        elif user.target is leave:
            inside.discard(user.args[1])
        node = user
        found = found if inside else node
    return found


def returns(node: fx.Node) -> bool:
    """Whether a node is what the whole call gives back."""
    return node.target is leave and int(node.args[1]) == 0  # type: ignore[arg-type]


def _unread(mark: fx.Node) -> bool:
    """Whether a call is handed a value of which it looks at the shape only."""
    return mark.target in (enter, leave, keep) and all(_unread(u) for u in mark.users)


def is_alias(user: fx.Node, node: fx.Node, index: Index) -> bool:
    """Whether ``user`` is ``node`` by another name: its values in the same shape and type, with their gradients."""
    changes = index.name.get(user) == "detach" or "dropout" in index.name.get(user, "")
    return _hands_on(user, node, index) and not changes


def _hands_on(user: fx.Node, node: fx.Node, index: Index) -> bool:
    """Whether ``user`` hands on what ``node`` is, at most dropped or detached, in the same shape and type."""
    same = index.role.get(user) == "pass" and index.data[user] == [node] and dtype(user) == dtype(node)
    return not returns(user) and same and _keeps(user, node, index)


def _keeps(user: fx.Node, node: fx.Node, index: Index) -> bool:
    """Whether ``user`` leaves the elements of ``node`` where they are."""
    moves = ("permute", "transpose", "movedim", "view", "reshape", "slice", "getitem")
    return same_shape(user, node) is True and index.name[user] not in moves


def _laid_out(fork: fx.Node, site: Site, index: Index) -> fx.Node:
    """A state as the shortcut reads it, where the host rearranges it for all its readers behind the fork."""
    way = [site.shortcut]
    while way[-1] is not fork and index.role.get(way[-1]) == "pass" and index.data[way[-1]]:
        way.append(index.data[way[-1]][0])
    turned = next((n for n, before in pairwise(way) if not _keeps(n, before, index)), None)
    node = fork
    while turned is not None and node is not turned:
        users = [u for u in node.users if not _unread(u)]
        if len(users) != 1 or index.role.get(users[0]) != "pass":
            return fork
        node = users[0]
    return node


def _behind(site: Site, after: fx.Node, index: Index) -> fx.Node:
    """What the norm or activation over an add hands on, as the add lies; the add itself where nothing follows it."""
    for reader in index.nodes:
        if index.role[reader] in ("norm", "act") and index.data[reader] and index.strip(index.data[reader][0]) is after:
            break
    else:
        return after
    node = norm_output(reader, index) if index.role[reader] == "norm" else reader
    way = [node]
    while way[-1] is not after:
        way.append(index.data[way[-1]][0])
    home = axis = site.axis % (index.rank(after) or 1)
    for before, step in pairwise(reversed(way)):
        axis = axis_behind(step, before, axis, index)
    while axis != home:
        users = [u for u in node.users if not _unread(u)]
        if len(users) != 1 or index.role.get(users[0]) != "pass":
            return after
        axis, node = axis_behind(users[0], node, axis, index), users[0]
    return node
