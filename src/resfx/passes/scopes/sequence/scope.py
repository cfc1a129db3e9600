"""Graph surgery for methods of scope ``sequence``: mixers over positions, before an attention or inside a branch.

Nothing here replaces a residual add, so another method may still claim it; where a mixer is a residual sublayer of
its own, the attention's shortcut reads the new state, and the new add joins the stream as a site of form ``mixer``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch
from torch import fx, nn

from resfx.errors import NoSitesError, VariantError
from resfx.methods.base import Method, Place
from resfx.methods.learned import copied_norm
from resfx.passes.find.branches.attention import NO_ATTENTION, REMEDIES, Attention, branch_region, find_attention
from resfx.passes.find.branches.branch import NO_MLP, Branch
from resfx.passes.find.graph import hint, shape
from resfx.passes.find.index import Index
from resfx.passes.find.mark import KEY
from resfx.passes.find.site import Site, Stream
from resfx.passes.find.terms import Slot, Term
from resfx.passes.scopes.indexed import index_of
from resfx.passes.scopes.insert import dress, inserting_behind
from resfx.passes.scopes.rows import from_rows, to_rows, value_in_rows
from resfx.passes.scopes.surgery import Surgery, Turn, reasons_of

from .points import Point, points_of


def apply_sequence(turn: Turn) -> Sequence[Site]:
    """Scope ``sequence``: put the method's mixers at their points of every chosen branch that has them."""
    surgery, method = turn.surgery, turn.application.method
    index = index_of(surgery.graph, surgery.tree)
    guides = [attention_of(stream, index) for stream in surgery.streams]
    plans: list[tuple[Site, Attention, list[Point]]] = []
    for site in turn.chosen:
        branch, guide = Branch(site, surgery.streams[site.stream], index), guides[site.stream]
        points, reasons = points_of(branch, method.points) if guide else ([], [_why_none(branch)])
        if turn.first:
            points = _build(turn, branch, points, reasons, guide)
        else:
            points = _as_before(turn, site, points, reasons)
        if points and guide:
            plans.append((site, guide, points))
    if not plans:
        skips = turn.application.skips
        raise NoSitesError(f"no place for {turn.label}", f"{len(turn.chosen)} residual adds, but: {reasons_of(skips)}",
                           _remedy((s.reason for s in skips),
                                   "print(resfx.scan(model, ...)) lists every add and its kind"))  # fmt: skip
    for site, guide, points in plans:
        for point in points:
            call, result = _insert(turn, site, point, guide)
            if point.residual:
                mixer = _join_stream(surgery, site, point, call, result, turn.application.key)
                turn.change(mixer, "mixer")
        turn.change(site, "mixer")
    return [site for site, _, _ in plans]


def _build(turn: Turn, branch: Branch, points: list[Point], reasons: list[str], guide: Attention | None) -> list[Point]:
    """Build a mixer for each point that the method takes, and note why there is none elsewhere."""
    site, method, taken, reasons = branch.site, turn.application.method, [], list(reasons)
    for point in points:
        assert guide is not None
        place = place_for(branch, point, guide, turn.surgery.tree)
        if (reason := method.refuse(place)) is not None:
            reasons.append(reason)
            continue
        turn.module(site, point.label, lambda point=point, place=place: _mixer(method, place, point))  # type: ignore[misc]
        taken.append(point)
    expected = (NO_ATTENTION, NO_MLP) if taken else ()
    for reason in dict.fromkeys(reasons):
        if reason not in expected:
            turn.leave([site], reason, REMEDIES.get(reason, ""))
    return taken


def _mixer(method: Method, place: Place, point: Point) -> nn.Module:
    mixer = method.build(place)
    mixer.layout = point.layout  # type: ignore[assignment]
    return mixer


def attention_of(stream: Stream, index: Index) -> Attention | None:
    """The first self-attention of a stream: it tells the direction and the padding of the whole stream."""
    for site in stream.sites:
        if site.kind == "attention" and not site.is_outer:
            found = find_attention(site, branch_region(site, index), index)
            if isinstance(found, Attention):
                return found
    return None


def _why_none(branch: Branch) -> str:
    return branch.attention if isinstance(branch.attention, str) else NO_ATTENTION


def _as_before(turn: Turn, site: Site, points: list[Point], reasons: list[str]) -> list[Point]:
    """The points of another capture that have mixers: it must offer them all."""
    had = set(turn.roles(site))
    if lost := had - {p.label for p in points}:
        raise VariantError(
            f"this call needs another capture, and {turn.label} cannot act on it as before",
            f"at {site.name}: no point for {', '.join(sorted(lost))}; {'; '.join(reasons)}",
            _remedy(reasons, "call the model as it was captured, or rewrite it with args= that match this call"),
        )
    return [p for p in points if p.label in had]


def _remedy(reasons: Iterable[str], otherwise: str) -> str:
    """What to do about the reasons that have a remedy."""
    return "; ".join(dict.fromkeys(REMEDIES[r] for r in reasons if r in REMEDIES)) or otherwise


def place_for(branch: Branch, point: Point, guide: Attention, tree: nn.Module) -> Place:
    """What a method may know of a point."""
    site, sizes, value = branch.site, shape(point.node), point.node.meta["val"]
    assert sizes is not None
    features = {"bhtd": (sizes[1], sizes[-1]), "bthd": sizes[2:]}.get(point.layout, (sizes[point.axis],))
    width = math.prod(hint(size) or 1 for size in features)
    kind = next((p.dtype for p in tree.parameters() if p.is_floating_point()), value.dtype)
    norm = branch.norm(tree) if point.residual else None
    heads = guide.heads if branch.found is None else branch.found.heads
    return Place(
        width=width, context_width=width, kind=site.kind, depth=site.depth, dtype=kind, device=value.device,
        point=point.point, heads=heads, causal=guide.causal,
        norm=None if norm is None else copied_norm(norm, device=value.device, dtype=kind),
    )  # fmt: skip


def _insert(turn: Turn, site: Site, point: Point, guide: Attention) -> tuple[fx.Node, fx.Node]:
    """Put a mixer behind a node for some of its readers; returns what it gave and what the readers get."""
    graph, node, padding, path = turn.surgery.graph, point.node, guide.padding, turn.path(site, point.label)
    mask: fx.Node | None = None
    with inserting_behind(graph, _behind_inputs(node)) as made:
        if padding is not None:
            mask = graph.call_function(torch.ops.aten.eq.Scalar, (padding, 0)) if guide.padding_drops else padding
        spread = point.layout == "btc" and node.meta["val"].dim() > 3  # positions on several axes
        turned = to_rows(graph, node, point.axis)
        rows = graph.call_method("flatten", (turned, 1, -2)) if spread else turned
        call = graph.call_module(path, (rows,), {} if mask is None else {"mask": mask})
        back = graph.call_method("view_as", (call, turned)) if spread else call
        mixed = result = back if point.axis == -1 else from_rows(graph, back, point.axis, node)
        if point.residual:
            result = graph.call_function(torch.ops.aten.add.Tensor, (node, mixed))
    in_rows = value_in_rows(node.meta["val"], point.axis)
    values = {back: in_rows, **dict.fromkeys((rows, call), in_rows.flatten(1, -2) if spread else in_rows)}
    for new in made:
        dress(new, site.node, turn.mark(point.label, longer_keys=guide.longer_keys))
        new.meta["val"] = values.get(new, new.meta["val"] if point.axis != -1 else node.meta["val"])
    if mask is not None and mask is not padding:
        mask.meta = {"val": padding.meta["val"].eq(0), KEY: turn.mark()}  # type: ignore[union-attr]
    for reader in point.readers:
        reader.replace_input_with(node, result)
    return mixed, result


def _behind_inputs(node: fx.Node) -> fx.Node:
    """The node itself, or the last of the graph's inputs and parameters where it is one of them."""
    while node.op in ("placeholder", "get_attr") and node.next.op in ("placeholder", "get_attr"):
        node = node.next
    return node


def _join_stream(surgery: Surgery, site: Site, point: Point, call: fx.Node, new: fx.Node, key: str) -> Site:
    """The mixer's add is one more add of the stream, and the sites that started from the old state read the new."""
    stream = surgery.streams[site.stream]
    (site,) = surgery.now([site])
    owner = f"{site.owner}.{key}".strip(".")
    mixer = Site(
        node=new, shortcut=point.node, branch=call, terms=(Term((Slot(new, 0),)), Term((Slot(new, 1),))),
        fork=point.node, form="mixer", owner=owner, line=site.line,
        order=sum(s.owner == owner for s in stream.sites), kind="mixer", axis=site.axis, width=site.width,
        root=site.root, depth=site.depth, stream=site.stream, block=site.block,
    )  # fmt: skip
    moved = {}
    for reader in stream.sites:
        adds = new in reader.node.all_input_nodes
        if reader is site or (reader.fork is site.fork and (adds or reader.form == "parallel")):
            moved[reader.name] = dataclasses.replace(
                reader, fork=new, shortcut=new if adds and reader.shortcut is point.node else reader.shortcut,
                context=new if reader.context is point.node else reader.context,
            )  # fmt: skip
    surgery.put_before(site, mixer, moved)
    return mixer
