"""A stream as the depth methods see it: steps that each read a state and hand on the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torch import fx

from resfx.passes.capture.marking.record import enter, keep, leave
from resfx.passes.find.branches.features import norm_output
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
        post_norm: the stream is normalised after every add, and is not the sum of what was added.
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
    if sites and sites[0].form in ("projection", "resampled"):
        sites = sites[1:]  # the stream begins with the state behind this add
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
    for group in groups:
        fork = current(group[0].fork)
        if steps and not _continues(fork, steps[-1].after, index):
            return f"{group[0].name} does not continue the state of the add before it"
        state = _advance(fork, index)
        steps.append(Step(group, state, state, current(group[-1].node)))
    end = _advance(_norm_behind(steps[-1].after, index) if post_norm else steps[-1].after, index)
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


def _continues(node: fx.Node, target: fx.Node, index: Index) -> bool:
    """Whether ``node`` is ``target`` behind nothing but norms, activations and rearranging."""
    for _ in range(16):
        if node is target:
            return True
        inputs = [x for x in index.data.get(node, ()) if not index.constant[x]]
        if not inputs:
            return False
        role = index.role[node]
        if role not in ("pass", "norm", "act", "scale") and not (index.name[node] == "add" and len(inputs) == 1):
            return False
        node = inputs[0]
    return False


def _advance(node: fx.Node, index: Index) -> fx.Node:
    """Down through casts and dropout that all readers share, out of the modules that computed it; never to a place
    inside a module that does more."""
    found, inside = node, set()
    while len(users := [u for u in node.users if not _unread(u)]) == 1:
        (user,) = users
        if not is_alias(user, node, index):
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
    """Whether ``user`` hands on the values of ``node`` in the same shape and type."""
    return (
        not returns(user) and index.role.get(user) == "pass" and index.data[user] == [node]
        and same_shape(user, node) is True and dtype(user) == dtype(node)
        and index.name[user] not in ("permute", "transpose", "movedim", "view", "reshape", "slice", "getitem")
    )  # fmt: skip


def _norm_behind(node: fx.Node, index: Index) -> fx.Node:
    for reader in index.nodes:
        if index.role[reader] == "norm" and index.data[reader] and index.strip(index.data[reader][0]) is node:
            return norm_output(reader, index)
    return node
