"""What a residual add works on: its kind, the context its branch starts from, its feature axis and width."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from resfx.passes.find import operators as ops
from resfx.passes.find.draft import Draft
from resfx.passes.find.graph import hint, shape
from resfx.passes.find.index import Index

_TURNS = frozenset("transpose permute swapaxes swapdims movedim moveaxis t".split())
_RESHAPES = frozenset("view reshape flatten unflatten _unsafe_view view_as reshape_as".split())


def describe_site(site: Draft, region: list[fx.Node], index: Index, root: nn.Module | None, entry: fx.Node) -> None:
    """Fill in ``kind``, ``context``, ``axis`` and ``width`` from the nodes between fork and branch.

    Args:
        entry: what the branch starts from: the fork, unless the branch reads another stream's state.
    """
    site.kind = _kind(region if site.terms[1].product is None else [*region, site.node], index)
    site.axis, site.width = feature_axis(site.branch if site.terms[1].product is None else site.node, index, root)
    site.context = _context(site, region, index, entry)


def _kind(region: list[fx.Node], index: Index) -> str:
    names = {index.name[n] for n in region}
    if names & ops.ATTENTION or ("softmax" in names and any(index.role[n] == "matmul" for n in region)):
        return "attention"
    if names & ops.CONV:
        return "conv"
    return "mlp" if any(index.role[n] == "weight" for n in region) else "other"


def _context(site: Draft, region: list[fx.Node], index: Index, entry: fx.Node) -> fx.Node | None:
    """The norm that opens the branch; on a post-norm host the fork itself, which is a norm's output."""
    found = opening_norm(region, entry, index)
    if found is not None and _rows_agree(found, site):
        return found
    if is_norm_output(entry, index) and _rows_agree(entry, site):
        return entry
    return None


def opening_norm(region: list[fx.Node], entry: fx.Node, index: Index) -> fx.Node | None:
    """What the first norm of a branch that starts from ``entry`` hands on."""
    opening = [n for n in region if index.role[n] == "norm" and index.strip(index.data[n][0]) is entry]
    inside = set(region)
    for core in sorted(opening, key=index.position.__getitem__):
        if (found := norm_output(core, index)) in inside:
            return found
    return None


def norm_output(core: fx.Node, index: Index) -> fx.Node:
    """From the normalising operator through casts, gain and bias to what the norm hands on."""
    node = core
    while len(users := [u for u in node.users if index.name.get(u)]) >= 1:
        onward = [
            u
            for u in users
            if index.name[u] in ("to", "type_as", "mul", "add", "_to_copy", "float", "type")
            and (index.role[u] == "pass" or all(x is node or index.parametric[x] for x in index.data[u]))
        ]
        if len(onward) != 1 or len(users) != 1:
            return node
        node = onward[0]
    return node


def is_norm_output(node: fx.Node, index: Index) -> bool:
    """Whether a node is what a norm hands on."""
    for _ in range(6):
        if index.role[node] == "norm":
            return True
        inputs = [x for x in index.data[node] if not index.parametric[x]]
        if index.name[node] not in ("to", "type_as", "mul", "add", "_to_copy", "float", "dropout") or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def _rows_agree(context: fx.Node, site: Draft) -> bool:
    """A context can gate the add if it has its rows: the same sizes outside the feature axis."""
    left, right = shape(context), shape(site.node)
    if left is None or right is None:
        return True
    axis = site.axis % len(right)
    return len(left) == len(right) and all(
        hint(a) == hint(b) for i, (a, b) in enumerate(zip(left, right, strict=True)) if i != axis
    )


def feature_axis(branch: fx.Node, index: Index, root: nn.Module | None) -> tuple[int, int | None]:
    """The axis that the branch's last weighted operator writes its features to, and its size.

    Negative for the last axis, positive for a channel axis counted from the front.
    """
    trail: list[tuple[fx.Node, fx.Node]] = []
    node = branch
    while index.data[node] and len(trail) < 40:
        written_out = index.role[node] == "norm" and index.name[node] in ("mul", "div")
        if index.role[node] not in ("pass", "part", "scale", "act", "") and not written_out:
            break
        varying = [x for x in index.data[node] if not index.constant[x]] or index.data[node]
        trail.append((node, max(varying, key=_numel)))
        node = trail[-1][1]
    name = index.name[node]
    channels = name in ops.CONV or name in ("batch_norm", "group_norm", "instance_norm")
    axis = 1 if channels or index.role[node] in ("pool", "upsample") else -1
    rank = index.rank(node)
    if rank is None and trail:  # an operator of several outputs, such as a recurrent cell, of which one was taken
        rank = index.rank(trail[-1][0])
    if rank is not None:
        axis %= rank
        for step, source in reversed(trail):
            axis = axis_behind(step, source, axis, index)
        sizes = shape(branch)
        assert sizes is not None
        last = axis == len(sizes) - 1
        width = sizes[axis]
        return (-1 if last else axis), width if isinstance(width, int) else hint(width)
    moved = _RESHAPES | _TURNS if axis == 1 else _TURNS
    if any(index.name[step] in moved for step, _ in trail):
        return axis, None  # without shapes nobody knows where the features went
    return axis, _width_of_weight(node, root)


def _numel(node: fx.Node) -> int:
    """Elements on the example: of a state and its gate, the state has more."""
    return math.prod(hint(n) or 1 for n in shape(node) or ())


def axis_behind(node: fx.Node, source: fx.Node, axis: int, index: Index) -> int:
    """Where the features of ``source`` on an axis, counted from the front, are behind a node that reads it."""
    name, before, after = index.name[node], shape(source), shape(node)
    if before is None or after is None or not after:
        return axis
    if axis >= len(before):
        return len(after) - 1
    if name in ("transpose", "swapaxes", "swapdims"):
        a, b = (int(x) % len(before) for x in node.args[1:3])  # type: ignore[arg-type]
        return {a: b, b: a}.get(axis, axis)
    if name in ("movedim", "moveaxis"):
        numbered = torch.empty([*range(len(before))], device="meta")  # each axis is as long as its number
        return tuple(torch.movedim(numbered, *node.args[1:3]).shape).index(axis)  # type: ignore[arg-type]
    if name == "permute":
        order = [int(x) % len(before) for x in _listed(node.args[1:])]
        return order.index(axis)
    if len(before) == len(after) and (name not in _RESHAPES or hint(before[axis]) == hint(after[axis])):
        return axis
    if axis == len(before) - 1 and hint(before[-1]) == hint(after[-1]):
        return len(after) - 1
    if axis < len(after) and hint(before[axis]) == hint(after[axis]):
        return axis
    return len(after) - 1


def _listed(args: tuple[Any, ...]) -> list[Any]:
    return list(args[0]) if len(args) == 1 and isinstance(args[0], (list, tuple)) else list(args)


def _width_of_weight(node: fx.Node, root: nn.Module | None) -> int | None:
    """Output features of a weighted node in a graph without shapes."""
    if root is None:
        return None
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        for name in ("out_features", "out_channels", "embed_dim", "num_features", "num_channels"):
            if isinstance(size := getattr(module, name, None), int):
                return size
        sizes = getattr(module, "normalized_shape", None)
        return int(sizes[-1]) if sizes else None
    for operand in node.all_input_nodes:
        if operand.op == "get_attr":
            value: Any = root
            for part in str(operand.target).split("."):
                value = getattr(value, part)
            if isinstance(value, torch.Tensor) and value.dim() >= 2:
                return int(value.shape[0])
    return None


def settle_axes(sites: list[Draft]) -> None:
    """One feature axis for the adds of one state: a branch that mixes tokens writes to another axis than the rest."""
    groups: dict[tuple[Any, ...], list[Draft]] = {}
    for site in sites:
        sizes = shape(site.node)
        if sizes is not None:
            groups.setdefault((site.root, tuple(hint(n) for n in sizes)), []).append(site)
    for (_, sizes), group in groups.items():
        axes = [s.axis for s in group]
        if len(set(axes)) > 1:
            axis = max(sorted(set(axes)), key=axes.count)  # the last axis, where they are even
            for site in group:
                site.axis, site.width = axis, sizes[axis]
