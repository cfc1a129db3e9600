"""Graph surgery for methods of scope ``route``: a projection of an attention reads those of the layers before it.

Nothing here replaces a residual add, and nothing is kept between calls: what the host caches is what the route gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from resfx.errors import NoSitesError, OptionError, VariantError
from resfx.methods.route.base import RouteMethod, RoutePlace
from resfx.passes.find.branches.attention import NO_ATTENTION, REMEDIES
from resfx.passes.find.branches.branch import Branch
from resfx.passes.find.branches.projected import Projected, projected
from resfx.passes.find.branches.tokens import tokens_of
from resfx.passes.find.graph import dtype, hint, shape
from resfx.passes.find.index import Index
from resfx.passes.find.mark import Mark
from resfx.passes.find.site import Site, Stream

from .indexed import index_of
from .insert import dress, inserting_behind
from .places import place_at
from .surgery import Turn, reasons_of

UNREAD = "the method reads nothing here"


@dataclass(eq=False)
class Layer:
    """One self-attention of a stream, with the points that a method asks for.

    Attributes:
        views: per point, ``(batch, positions, heads, head_dim)`` as the layer computed it.
    """

    site: Site
    branch: Branch
    points: dict[str, Projected]
    views: dict[str, fx.Node] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What layers must have in common to be mixed."""
        return tuple((name, p.heads, p.head_dim, dtype(p.node)) for name, p in self.points.items())


@dataclass(eq=False)
class Route:
    """One layer that reads others.

    Attributes:
        given: what the method wants beside, by name.
    """

    layer: Layer
    place: RoutePlace
    sources: list[Layer]
    given: dict[str, fx.Node]


def apply_route(turn: Turn) -> Sequence[Site]:
    """Scope ``route``: put the method's modules behind the projections of every chosen attention that has them."""
    surgery, method = turn.surgery, turn.application.method
    assert isinstance(method, RouteMethod)
    index, asked = index_of(surgery.graph, surgery.tree), {site.name for site in turn.chosen}
    planned: list[Route] = []
    for stream in surgery.streams:
        if any(site.name in asked for site in stream.sites):
            planned += _plan(turn, method, stream, asked, index)
    if not planned:
        raise NoSitesError(f"no place for {turn.label}", reasons_of(turn.application.skips),
                           "print(resfx.scan(model, ...)) lists every add and its kind")  # fmt: skip
    for route in planned:
        for layer in (*route.sources, route.layer):
            _open(turn, layer)
    for route in planned:
        for name in route.layer.points:
            _insert(turn, route, name, method)
        turn.change(route.layer.site, "route")
    return [route.layer.site for route in planned]


def _plan(turn: Turn, method: RouteMethod, stream: Stream, asked: set[str], index: Index) -> list[Route]:
    """The layers of one stream, and the routes of those that were chosen; the others are left with their reason."""
    layers: list[Layer] = []
    left: dict[Site, str] = {}
    for site in stream.sites:
        found = _layer(Branch(site, stream, index), method.points) if site.form != "mixer" else NO_ATTENTION
        if isinstance(found, Layer) and layers and found.kind != layers[0].kind:
            found = f"its projections are {_shape(found)}, those of the first layer {_shape(layers[0])}"
        if isinstance(found, Layer):
            layers.append(found)
        else:
            left[site] = found
    tokens = tokens_of(stream, index, turn.surgery.tree) if "tokens" in method.wants else None
    routes = []
    for number, layer in enumerate(layers):
        if layer.site.name not in asked:
            continue
        sources = method.sources(number, len(layers))
        if sources is None or isinstance(tokens, str):
            left[layer.site] = UNREAD if sources is None else str(tokens)
            continue
        if any(not 0 <= j < number for j in sources):
            raise OptionError(
                f"{turn.label} makes layer {number} read layers {sources}", f"{number} layers come before it",
                "sources(layer, layers) names earlier layers, from 0, or None",
            )  # fmt: skip
        route = _route(turn, layer, [layers[j] for j in sources], number, len(layers), tokens, method)
        if (reason := method.refuse(route.place)) is None:
            routes.append(route)
        else:
            left[layer.site] = reason
    _leave(turn, {s: reason for s, reason in left.items() if s.name in asked})
    return routes


def _layer(branch: Branch, names: Sequence[str]) -> Layer | str:
    if branch.site.is_outer:
        return NO_ATTENTION
    points: dict[str, Projected] = {}
    for name in names:
        found = projected(branch, name)
        if isinstance(found, str):
            return found
        points[name] = found
    return Layer(branch.site, branch, points)


def _leave(turn: Turn, left: Mapping[Site, str]) -> None:
    """Note what was left alone; a later capture must offer what the first one had."""
    for site, reason in left.items():
        if not turn.first and turn.roles(site):
            raise VariantError(
                f"this call needs another capture, and {turn.label} cannot act on it as before",
                f"at {site.name}: {reason}", "call the model as it was captured",
            )  # fmt: skip
        turn.leave([site], reason, REMEDIES.get(reason, ""))


def _route(
    turn: Turn, layer: Layer, sources: list[Layer], number: int, layers: int, tokens: tuple[fx.Node, int] | None,
    method: RouteMethod,
) -> Route:  # fmt: skip
    context = _context(layer)
    given = {"context": context} if "context" in method.wants else {}
    if tokens is not None:
        given["tokens"] = tokens[0]
    point, base = next(iter(layer.points.values())), vars(place_at(layer.site, turn.surgery.tree))
    sizes = shape(context)
    place = RoutePlace(**{
        **base, "width": point.heads * point.head_dim, "context_width": hint(sizes[-1]) if sizes else None,
        "heads": point.heads, "head_dim": point.head_dim, "point": next(iter(layer.points)), "layer": number,
        "layers": layers, "sources": len(sources), "vocabulary": tokens[1] if tokens else None,
    })  # fmt: skip
    return Route(layer, place, sources, given)


def _context(layer: Layer) -> fx.Node:
    """What the projections read."""
    attention = layer.branch.found
    assert attention is not None
    return layer.branch.entries(attention.projections.values())[0]


def _shape(layer: Layer) -> str:
    return ", ".join(f"{name} of {p.heads} x {p.head_dim} {dtype(p.node)}" for name, p in layer.points.items())


def _open(turn: Turn, layer: Layer) -> None:
    """A view of each of a layer's points with the heads apart, for its own route and for those that read it."""
    graph = turn.surgery.graph
    for name, point in layer.points.items():
        if name in layer.views:
            continue
        node, value = point.node, point.node.meta["val"]
        with inserting_behind(graph, node) as made:
            if point.layout == "btc":
                view = graph.call_method("unflatten", (node, -1, (point.heads, point.head_dim)))
                value = value.unflatten(-1, (point.heads, point.head_dim))
            elif point.layout == "bhtd":
                view, value = graph.call_method("transpose", (node, 1, 2)), value.transpose(1, 2)
            else:
                view = node
        _dress(turn, made, layer, [value])
        layer.views[name] = view


def _insert(turn: Turn, route: Route, name: str, method: RouteMethod) -> None:
    """Put a module behind one of a layer's points; whoever read it reads the result."""
    graph, layer = turn.surgery.graph, route.layer
    point, view = layer.points[name], layer.views[name]
    role = "".join(layer.points) if method.shared else name
    facts = {"layer": route.place.layer, "sources": len(route.sources), "heads": point.heads, "dim": point.head_dim}
    path = turn.module(layer.site, role, lambda: method.build(route.place), facts=facts)
    if not path:
        raise VariantError(
            f"this call needs another capture, and {turn.label} cannot act on it as before",
            f"at {layer.site.name}: no module was made for it", "call the model as it was captured",
        )  # fmt: skip
    readers = [u for u in point.node.users if u is not view]
    with inserting_behind(graph, view) as made:
        rows = [source.views[name] for source in route.sources]
        call = result = graph.call_module(path, (rows, view), dict(route.given))
        values = [view.meta["val"]]
        if point.layout == "btc":
            result = graph.call_method("flatten", (call, 2))
        elif point.layout == "bhtd":
            result = graph.call_method("transpose", (call, 1, 2))
        if result is not call:
            values.append(point.node.meta["val"])
    _dress(turn, made, layer, values, turn.mark(role))
    for reader in readers:
        reader.replace_input_with(point.node, result)


def _dress(turn: Turn, made: Iterable[fx.Node], layer: Layer, values: Sequence[Any], mark: Mark | None = None) -> None:
    for node, value in zip(made, values, strict=False):
        dress(node, layer.site.node, mark or turn.mark())
        node.meta["val"] = value
