"""Graph surgery for methods of scope ``sequence``: mixers over positions, before an attention or inside a branch.

Nothing here replaces a residual add, so another method may still claim it; where a mixer is a residual sublayer of
its own, the attention's shortcut reads the new state, and the new add joins the stream as a site of form ``mixer``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..errors import NoSitesError, VariantError
from ..ops._streaming import Mixer
from ..ops.method import Place
from ..report import Site, Skip, Stream
from .attention import NO_ATTENTION, Attention, branch_region, find_attention, ready_to_rotate
from .features import is_norm_output, norm_output
from .graph import hint, owner, place_module, shape
from .index import Index

NO_MLP = "no MLP in this branch"
EXPERTS = "a mixture of experts: its hidden features are not a sequence"
FUSED = "queries, keys and values come from one projection, which on='qkv' convolves whole"
HIDDEN_PROJECTION = "the projections of queries, keys and values were not found"
FLAT = "the projection's output is not (batch, positions, features)"
_ROUTERS = frozenset(
    ["topk", "_grouped_mm", "grouped_mm", "index_add", "scatter", "scatter_add", "one_hot", "nonzero", "sort"]
)


@dataclass
class Point:
    """Where one mixer goes: what it reads, and which readers get the mixed tensor instead.

    Attributes:
        label: the last part of the mixer's path.
        residual: the readers get the sum of the node and the mixer's output.
    """

    label: str
    point: str
    node: fx.Node
    readers: set[fx.Node]
    layout: str = "btc"
    residual: bool = False


class Branch:
    """One site's branch, taken apart once per application."""

    def __init__(self, site: Site, stream: Stream, index: Index) -> None:
        self.site, self.index = site, index
        self.region = branch_region(site, index)
        self.attention = find_attention(site, self.region, index)
        self.siblings = [s for s in stream.sites if s is not site and s.fork is site.fork and s.form == "parallel"]
        self.fork = self._last_common()

    @property
    def found(self) -> Attention | None:
        """The attention, if there is one to act on."""
        return self.attention if isinstance(self.attention, Attention) else None

    def _last_common(self) -> fx.Node:
        """The state that both shortcut and branch read: the fork, or further down through casts and dropout."""
        index, chain, node = self.index, [], self.site.shortcut
        while node is not self.site.fork and index.role[node] == "pass" and index.data[node]:
            chain.append(node)
            node = index.data[node][0]
        for node in chain:
            below = self._between(node)
            if self.site.fork not in below and not any(x in below for x in chain[chain.index(node) + 1 :]):
                return node
        return self.site.fork

    def _between(self, stop: fx.Node) -> set[fx.Node]:
        found, stack = {self.site.branch}, [self.site.branch]
        while stack:
            node = stack.pop()
            fresh = [x for x in self.index.data[node] if x is not stop and x not in found]
            found.update(x for x in fresh if x is self.site.fork or x in self.region)
            stack.extend(x for x in fresh if x in self.region)
        return found

    # -- points --------------------------------------------------------------------------------------------------

    def points(self, names: Iterable[str]) -> tuple[list[Point], list[str]]:
        """The places for mixers that a branch has, and why it lacks the others."""
        found: list[Point] = []
        reasons: list[str] = []
        wanted = list(names)
        for name in dict.fromkeys("qkv" if n in ("q", "k", "v") else n for n in wanted):
            finder: Callable[..., list[Point] | str] = getattr(self, f"_{name}_points")
            got = finder([n for n in wanted if n in ("q", "k", "v")]) if name == "qkv" else finder()
            if isinstance(got, str):
                reasons.append(got)
            else:
                found += got
        return found, reasons

    def _stream_points(self) -> list[Point] | str:
        if isinstance(self.attention, str):
            return self.attention
        ends = [self.site.node, *(s.node for s in self.siblings)]
        return [Point("swa", "stream", self.fork, self._readers(self.fork, ends), residual=True)]

    def _attention_points(self) -> list[Point] | str:
        if isinstance(self.attention, str):
            return self.attention
        operands = (self.attention.query, self.attention.key, self.attention.value)
        return [Point("a", "attention", e, self._readers(e, operands)) for e in self._entries(operands)[:1]]

    def _qkv_points(self, wanted: list[str]) -> list[Point] | str:
        if isinstance(self.attention, str):
            return self.attention
        projections = self.attention.projections
        if len(projections) < 3:
            return HIDDEN_PROJECTION
        fused = len(set(projections.values())) == 1
        if fused and len(wanted) < 3:
            return FUSED
        found = []
        for name in ("qkv",) if fused else wanted:
            node, swapped = ready_to_rotate(projections[name[0]], self.region, self.index)
            if self.index.rank(node) == 4:
                found.append(Point(name, name, node, set(node.users), "bhtd" if swapped else "bthd"))
            elif rows := self._rows_of(node):
                found.append(Point(name, name, rows, set(rows.users)))
            else:
                return FLAT
        return found

    def _mlp_points(self) -> list[Point] | str:
        first = self._first_of_mlp()
        if isinstance(first, str):
            return first
        return [Point("c", "mlp", e, self._readers(e, first)) for e in self._entries(first)[:1]]

    def _hidden_points(self) -> list[Point] | str:
        first = self._first_of_mlp()
        if isinstance(first, str):
            return first
        if any(self.index.name[n] in _ROUTERS for n in self.region):
            return EXPERTS
        rows = [self._rows_of(n) for n in first]
        if any(r is None for r in rows):
            return FLAT
        return [Point(f"d{i}", "hidden", r, set(r.users)) for i, r in enumerate(rows) if r is not None]

    # -- reading the branch --------------------------------------------------------------------------------------

    def _readers(self, node: fx.Node, ends: Iterable[fx.Node]) -> set[fx.Node]:
        """The users of a node through which it reaches one of ``ends``."""
        start = self.index.position[node]
        back = set(ends)
        stack = list(back)
        while stack:
            for x in stack.pop().all_input_nodes:
                if x not in back and self.index.position.get(x, start) > start:
                    back.add(x)
                    stack.append(x)
        return {u for u in node.users if u in back}

    def _entries(self, ends: Iterable[fx.Node]) -> list[fx.Node]:
        """Where the way to ``ends`` begins: the outputs of norms of the fork, or the fork where no norm opens."""
        index = self.index
        norms = [n for n in self.region if index.role[n] == "norm" and index.strip(index.data[n][0]) is self.site.fork]
        outputs = [norm_output(n, index) for n in sorted(norms, key=index.position.__getitem__)]
        found = [o for o in dict.fromkeys(outputs) if self._readers(o, ends)]
        return found or [self.fork]

    def _first_of_mlp(self) -> list[fx.Node] | str:
        """The weighted nodes that open the MLP."""
        index, attention = self.index, self.found
        if attention is None and self.site.kind != "mlp":
            return NO_MLP
        skip = set() if attention is None else self._tied_to(attention)
        weighted = [n for n in self.region if index.role[n] == "weight" and n not in skip]
        entries = self._entries(weighted)
        opened = {index.strip(e) for e in entries} | {index.strip(self.fork)}
        first = [n for n in weighted if any(index.strip(x) in opened for x in index.data[n])]
        return sorted(first, key=index.position.__getitem__) or NO_MLP

    def _tied_to(self, attention: Attention) -> set[fx.Node]:
        """The nodes of the region before or after the attention."""
        core = attention.core
        stack = [core, attention.query, attention.key, attention.value]
        before = set(stack)
        while stack:
            fresh = [x for x in self.index.data[stack.pop()] if x in self.region and x not in before]
            before.update(fresh)
            stack.extend(fresh)
        after = {core}
        for node in sorted(self.region, key=self.index.position.__getitem__):
            if any(x in after for x in self.index.data[node]):
                after.add(node)
        entries = {norm_output(n, self.index) for n in before if self.index.role[n] == "norm"}
        return (before | after) - entries

    def _rows_of(self, node: fx.Node) -> fx.Node | None:
        """A projection's output as ``(batch, positions, features)``, through at most two views."""
        stream = shape(self.site.node)
        for _ in range(3):
            sizes = shape(node)
            if sizes is not None and stream is not None and len(sizes) == 3:
                return node if hint(sizes[1]) == hint(stream[1]) else None
            users = [u for u in node.users if self.index.role[u] == "pass"]
            if len(users) != 1:
                return None
            node = users[0]
        return None

    def norm(self, tree: nn.Module) -> nn.Module | None:
        """A copy of the norm that opens the branch, ``None`` where the fork is a norm's output already.

        A norm written out in a block's own code has no module: its place takes a fresh root-mean-square norm.
        """
        context = self.site.context
        if context is None or context is self.site.fork or is_norm_output(self.site.fork, self.index):
            return None
        module = tree.get_submodule(owner(context))
        if not list(module.children()) and 1 <= len(list(module.parameters())) <= 2:
            return copy.deepcopy(module)
        return nn.RMSNorm(self.site.width or 1)


def apply_sequence(
    graph: fx.Graph, chosen: list[Site], streams: list[Stream], application: Any, tree: nn.Module
) -> list[str]:
    """Scope ``sequence``: put the method's mixers at their points of every chosen branch that has them."""
    method, first = application.method, application.claimed is None
    index = _index(graph, tree)
    attentions = [attention_of(stream, index) for stream in streams]
    plans: list[tuple[Site, list[tuple[Point, Place]]]] = []
    for site in chosen:
        branch, guide = Branch(site, streams[site.stream], index), attentions[site.stream]
        points, reasons = branch.points(method.points) if guide else ([], [_why_none(branch)])
        places = [(p, place_of(branch, p, guide, tree if first else None)) for p in points] if guide else []
        accepted = [(p, place) for p, place in places if not first or method.refuse(place) is None]
        if first:
            reasons += [r for _, place in places if (r := method.refuse(place))]
            hidden = (NO_ATTENTION, NO_MLP) if accepted else ()
            new = [Skip(site.owner, site.line, r, node=site.node) for r in dict.fromkeys(reasons) if r not in hidden]
            application.skips += new
        else:
            _same_as_before(tree, application, site, {p.label for p in points}, reasons)
        if accepted:
            plans.append((site, accepted))
    if not plans:
        found = "; ".join(dict.fromkeys(s.reason for s in application.skips))
        raise NoSitesError(f"no place for {method.name}", f"{len(chosen)} residual adds, but: {found}",
                           "print(resfx.scan(model, ...)) lists every add and its kind")  # fmt: skip
    for site, accepted in plans:
        guide = attentions[site.stream]
        assert guide is not None
        for point, place in accepted:
            path = mixer_path(application, site, point.label)
            if first:
                mixer = method.build(place)
                mixer.layout = point.layout  # type: ignore[assignment]
                place_module(tree, path, mixer)
            call, result = _insert(graph, site, point, path, method.name, guide)
            if point.residual:
                _join_stream(site, point, call, result, streams[site.stream], application.key)
        site.mixers.append(method.name)
    return [site.name for site, _ in plans]


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


def _same_as_before(tree: nn.Module, application: Any, site: Site, labels: set[str], reasons: list[str]) -> None:
    """Another capture must offer exactly the points that have mixers."""
    bank = tree.get_submodule(mixer_path(application, site, "").rsplit(".", 1)[0])
    had = {n.removesuffix(f"_{site.order}") for n, m in bank._modules.items()
           if isinstance(m, Mixer) and n.endswith(f"_{site.order}")}  # fmt: skip
    if not had <= labels:
        raise VariantError(
            f"this call needs another capture, and {application.method.name} cannot act on it as before",
            f"at {site.name}: no point for {', '.join(sorted(had - labels))}; {'; '.join(reasons)}",
            "call the model as it was captured, or rewrite it with args= that match this call",
        )


def mixer_path(application: Any, site: Site, label: str) -> str:
    """Where a mixer lives in the model's tree."""
    return ".".join(p for p in ("resfx", application.key, site.owner, f"{label}_{site.order}") if p)


def place_of(branch: Branch, point: Point, guide: Attention, tree: nn.Module | None) -> Place:
    """What a method may know of a point."""
    site, sizes, value = branch.site, shape(point.node), point.node.meta["val"]
    assert sizes is not None
    features = (sizes[1], sizes[3]) if point.layout == "bhtd" else sizes[2:]
    width = math.prod(hint(size) or 1 for size in features)
    kind, norm = value.dtype, None
    if tree is not None:
        kind = next((p.dtype for p in tree.parameters() if p.is_floating_point()), kind)
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
        node=new, shortcut=point.node, branch=call, fork=point.node, form="mixer",
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
