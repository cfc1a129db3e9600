"""Graph surgery for methods of scope ``sequence``: mixers over positions, before an attention or inside a branch.

Nothing here replaces a residual add, so another method may still claim it; where a mixer is a residual sublayer of
its own, the attention's shortcut reads the new state, and the new add joins the stream as a site of form ``mixer``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from resfx.errors import NoSitesError, VariantError
from resfx.methods.base import Place
from resfx.methods.sequence.mixer import Mixer
from resfx.passes.find.attention import NO_ATTENTION, REMEDIES, Attention, branch_region, find_attention
from resfx.passes.find.branch import NO_MLP, Branch
from resfx.passes.find.graph import hint, place_module, shape
from resfx.passes.find.index import Index
from resfx.passes.find.site import Site, Skip, Stream
from resfx.passes.find.terms import Slot, Term

from .points import Point, points_of


def apply_sequence(
    graph: fx.Graph, chosen: list[Site], streams: list[Stream], application: Any, tree: nn.Module
) -> list[str]:
    """Scope ``sequence``: put the method's mixers at their points of every chosen branch that has them."""
    method, first = application.method, application.claimed is None
    index = _index(graph, tree)
    guides = [attention_of(stream, index) for stream in streams]
    plans: list[tuple[Site, Attention, list[Point]]] = []
    for site in chosen:
        branch, guide = Branch(site, streams[site.stream], index), guides[site.stream]
        points, reasons = points_of(branch, method.points) if guide else ([], [_why_none(branch)])
        if first:
            points = _build(application, branch, points, reasons, guide, tree)
        else:
            points = _as_before(application, site, points, reasons, tree)
        if points and guide:
            plans.append((site, guide, points))
    if not plans:
        found = "; ".join(dict.fromkeys(s.reason for s in application.skips))
        raise NoSitesError(f"no place for {method.label}", f"{len(chosen)} residual adds, but: {found}",
                           _remedy((s.reason for s in application.skips),
                                   "print(resfx.scan(model, ...)) lists every add and its kind"))  # fmt: skip
    for site, guide, points in plans:
        for point in points:
            path = mixer_path(application, site, point.label)
            call, result = _insert(graph, site, point, path, method.label, guide)
            if point.residual:
                _join_stream(site, point, call, result, streams[site.stream], application.key)
        site.mixers.append(method.label)
    return [site.name for site, _, _ in plans]


def _build(
    application: Any, branch: Branch, points: list[Point], reasons: list[str], guide: Attention | None, tree: nn.Module
) -> list[Point]:
    """Build a mixer for each point that the method takes, and note why there is none elsewhere."""
    site, method, taken, reasons = branch.site, application.method, [], list(reasons)
    for point in points:
        assert guide is not None
        place = place_of(branch, point, guide, tree)
        if (reason := method.refuse(place)) is not None:
            reasons.append(reason)
            continue
        mixer = method.build(place)
        mixer.layout = point.layout
        place_module(tree, mixer_path(application, site, point.label), mixer)
        taken.append(point)
    expected = (NO_ATTENTION, NO_MLP) if taken else ()
    told = [r for r in dict.fromkeys(reasons) if r not in expected]
    application.skips += [Skip(site.owner, site.line, r, REMEDIES.get(r, ""), node=site.node) for r in told]
    return taken


def _index(graph: fx.Graph, tree: nn.Module) -> Index:
    """The graph's index; mixers of earlier rewrites count as operators that hand their input on."""
    index = Index(graph, tree)
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(tree.get_submodule(str(node.target)), Mixer):
            index.role[node] = "pass"
    return index


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


def _as_before(application: Any, site: Site, points: list[Point], reasons: list[str], tree: nn.Module) -> list[Point]:
    """The points of another capture that have mixers: it must offer them all."""
    bank = tree.get_submodule(mixer_path(application, site, "").rsplit(".", 1)[0])
    had = {n.removesuffix(f"_{site.order}") for n, m in bank._modules.items()
           if isinstance(m, Mixer) and n.endswith(f"_{site.order}")}  # fmt: skip
    if lost := had - {p.label for p in points}:
        raise VariantError(
            f"this call needs another capture, and {application.method.label} cannot act on it as before",
            f"at {site.name}: no point for {', '.join(sorted(lost))}; {'; '.join(reasons)}",
            _remedy(reasons, "call the model as it was captured, or rewrite it with args= that match this call"),
        )
    return [p for p in points if f"{p.label}_{site.order}" in bank._modules]


def _remedy(reasons: Iterable[str], otherwise: str) -> str:
    """What to do about the reasons that have a remedy."""
    return "; ".join(dict.fromkeys(REMEDIES[r] for r in reasons if r in REMEDIES)) or otherwise


def mixer_path(application: Any, site: Site, label: str) -> str:
    """Where a mixer lives in the model's tree."""
    return ".".join(p for p in ("resfx", application.key, site.owner, f"{label}_{site.order}") if p)


def place_of(branch: Branch, point: Point, guide: Attention, tree: nn.Module) -> Place:
    """What a method may know of a point."""
    site, sizes, value = branch.site, shape(point.node), point.node.meta["val"]
    assert sizes is not None
    features = (sizes[1], sizes[3]) if point.layout == "bhtd" else sizes[2:]
    width = math.prod(hint(size) or 1 for size in features)
    kind = next((p.dtype for p in tree.parameters() if p.is_floating_point()), value.dtype)
    norm = branch.norm(tree) if point.residual else None
    heads = guide.heads if branch.found is None else branch.found.heads
    return Place(
        width=width, context_width=width, kind=site.kind, depth=site.depth, dtype=kind, device=value.device,
        point=point.point, heads=heads, causal=guide.causal,
        norm=None if norm is None else norm.to(device=value.device, dtype=kind),
    )  # fmt: skip


def _insert(
    graph: fx.Graph, site: Site, point: Point, path: str, method: str, guide: Attention
) -> tuple[fx.Node, fx.Node]:
    """Put a mixer behind a node for some of its readers; returns its call and what the readers get."""
    node, padding, new = point.node, guide.padding, []
    kwargs: dict[str, Any] = {}
    with graph.inserting_after(_behind_inputs(node)):
        anchor = graph.call_function(_mark)
    with graph.inserting_before(anchor):
        if padding is not None:
            kwargs["mask"] = padding
            if guide.padding_drops:
                kwargs["mask"] = graph.call_function(torch.ops.aten.eq.Scalar, (padding, 0))
                kwargs["mask"].meta = {"val": padding.meta["val"].eq(0), "resfx": method}
        call = result = graph.call_module(path, (node,), kwargs)
        new.append(call)
        if point.residual:
            result = graph.call_function(torch.ops.aten.add.Tensor, (node, call))
            new.append(result)
    graph.erase_node(anchor)
    for made in new:
        kept = {k: v for k, v in site.node.meta.items() if k != "from_node"}
        made.meta = {**kept, "val": node.meta["val"], "resfx": method, "longer_keys": guide.longer_keys}
    for reader in point.readers:
        reader.replace_input_with(node, result)
    return call, result


def _mark() -> None:
    """Target of a node that never runs."""


def _behind_inputs(node: fx.Node) -> fx.Node:
    """The node itself, or the last of the graph's inputs and parameters where it is one of them."""
    while node.op in ("placeholder", "get_attr") and node.next.op in ("placeholder", "get_attr"):
        node = node.next
    return node


def _join_stream(site: Site, point: Point, call: fx.Node, new: fx.Node, stream: Stream, key: str) -> None:
    """The mixer's add is one more add of the stream, and the sites that started from the old state read the new."""
    mixer = Site(
        node=new, shortcut=point.node, branch=call, terms=(Term((Slot(new, 0),)), Term((Slot(new, 1),))), joins=(),
        fork=point.node, form="mixer",
        owner=f"{site.owner}.{key}".strip("."), line=site.line, kind="mixer", axis=site.axis,
        width=site.width, root=site.root, depth=site.depth, stream=site.stream, block=site.block, mixers=[key],
    )  # fmt: skip
    for reader in stream.sites:
        if reader.fork is site.fork and new in (*reader.node.all_input_nodes, *_inputs(reader)):
            reader.shortcut = new if reader.shortcut is point.node else reader.shortcut
            reader.context = new if reader.context is point.node else reader.context
            if reader is not site:
                reader.fork = new
    site.fork = new
    stream.sites.insert(stream.sites.index(site), mixer)


def _inputs(site: Site) -> list[fx.Node]:
    return [site.node] if site.form == "parallel" else []
