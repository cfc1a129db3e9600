"""Reading off a plan what the code of a call is good for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from resfx.passes.capture.clone import signature_of
from resfx.passes.capture.guards import Length, shape_guard
from resfx.passes.capture.marking.contents import Contents
from resfx.passes.capture.marking.modes import is_mode
from resfx.passes.capture.marking.record import CallRecord
from resfx.passes.capture.marking.watch import Found, Held
from resfx.passes.find.mark import mark_of
from resfx.runtime.huggingface import DECIDES_RESULTS

from .guard import Guard, Way, autocast_state, is_found, look_up, names_in
from .plan import Plan, from_function, is_size, known_in, only_handed_on
from .region import Region
from .values import bound, tensors_of

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def guard_of(plan: Plan, region: Region, module: nn.Module, varying: set[tuple[type, str]]) -> Guard:
    """What the code of a call was made for.

    Args:
        module: the one that is called.
        varying: integer fields of objects that are inputs.
    """
    own = tuple(region.path.split(".")) if region.path else ()
    generated = [r for r in region.below() if r.generated]
    reads, held = _read(module, generated, own, [c for c in plan.calls.values() if c.modes and c.is_in(region.call)])
    _look_into(reads, generated, own)
    deciding = [c for r in generated if r.forms for c in plan.calls.values() if c.is_in(r.call)]
    chosen = [(owner, name, v) for c in deciding for (owner, name), v in c.reads.items() if name in DECIDES_RESULTS]
    reads |= {(*way, name): v for owner, name, v in chosen if (way := owner.way_from(own)) is not None}
    ways = [tuple(r.path.split("."))[len(own) :] if r.path else () for r in generated]
    lists = {w: names for way in ways for w, names in _lists(module.get_submodule(".".join(way)), way)}
    children = [owner for r in generated for (owner, _), how in r.call.reads.items() if how is Found.CHILDREN]
    listed = [way for owner in children if (way := owner.way_from(own)) is not None]
    lists |= {way: names_in(look_up(module, way)) for way in listed}
    free = frozenset(i for i, m in region.enters.items() if only_handed_on(plan, m) and from_function(plan, m))
    # The code's Python may have looked at the sizes of whatever it was handed, though its graph does not show it.
    given = [(i, region.enters[i].meta["val"]) for i in sorted(set(region.enters) - free)]
    tensors = {i: v for i, v in given if isinstance(v, torch.Tensor)}
    handed = set(known_in(region.call.given))  # others are made in the code, or by it
    objects = [o for o in plan.capture.objects if o.inside is None and o.number in handed]
    around = {o.number: o.inside[0] if o.inside else o.number for o in plan.capture.objects}
    place = {leaf: (o.number, i) for o in objects for i, leaf in enumerate(o.leaves)}
    inside = {place[x]: x for r in generated for n in r.nodes for x in n.all_input_nodes if x in place}
    looked = {around[n] for r in generated for n in r.call.looked_into} | {number for number, _ in inside}
    looked |= {o.number for o in objects if o.unseen}
    seen = {o.number for o in objects if o.given and o.number in looked}
    inside |= {at: leaf for leaf, at in place.items() if at[0] in seen and isinstance(leaf, fx.Node)}
    asks = any(c.asks_grad for r in (region, *region.told()) for c in (r.call, *r.dissolved))
    values = [*tensors.values(), *(Length(v) if is_size(x) else v for x in inside.values() for v in [x.meta["val"]])]
    return Guard(
        arguments=bound(region.call.given, list(signature_of(module).parameters.values())),
        objects={o.number: (o.cls, o.first if o.number in looked else None) for o in objects},
        free=free,
        used=(*tensors, *inside), kinds=tuple((v.dtype, v.device) for v in values),
        shapes=shape_guard(values, plan.capture.known), reads=tuple(reads.items()),
        held=tuple((way, *known) for way, known in held.items()), lists=tuple(lists.items()),
        shared=tuple(_shared(generated, module, region.path or "")),
        told=tuple((tuple(r.path.split("."))[len(own) :], not plan.beside(r.path)) for r in region.told() if r.path),
        autocast=autocast_state(), grad=plan.capture.grad, mode=plan.capture.of_grad if asks else None, varying=varying,
    )  # fmt: skip


def _read(
    module: nn.Module, generated: list[Region], own: Way, setting: list[CallRecord]
) -> tuple[dict[Way, Any], dict[Way, tuple[type, Way]]]:
    """What the code's Python read: values, and objects that have attributes of their own.

    Args:
        module: the one that is called.
        setting: the calls within that set the mode of modules: what they set is no condition of the code.
    """
    values: dict[Way, Any] = {}
    objects: dict[Way, tuple[type, Way]] = {}
    for call, (owner, name), value in [(r.call, *item) for r in generated for item in r.call.reads.items()]:
        if (way := owner.way_from(own)) is None:
            continue
        if is_mode(owner, name) and any(outer.sets_mode_of(owner, call.number) for outer in setting):
            continue
        if value is Found.CHILDREN:
            continue
        if value is Found.CALLED:
            values[*way, name] = look_up(module, (*way, name))
        elif isinstance(value, Found):
            if is_found(look_up(module, way), name, value):  # else a trace goes without it, as without hooks
                values[*way, name] = value
        elif not isinstance(value, Held):
            values[*way, name] = value
        elif (shared := value.owned.way_from(own)) is not None:  # what is read of it is told by this way
            objects[*way, name] = value.cls, shared
    return values, objects


def _look_into(reads: dict[Way, Any], generated: list[Region], own: Way) -> None:
    """Of what code reads tensors in, the tensors count too: which places have one."""
    nodes = {x for r in generated for n in r.nodes for x in n.all_input_nodes}
    for place in [place for node in nodes for place in mark_of(node).held]:
        way = place.way[len(own) :]
        if isinstance(contents := reads.get(way), Contents):
            reads[way] = contents.with_tensors()


def _shared(generated: list[Region], module: nn.Module, own: str) -> Iterator[tuple[Way, Way]]:
    """Ways to one module or tensor that generated code calls or reads: it does so by one of them.

    Args:
        own: the module's path in the graph.
    """
    below = lambda path: path[len(own) + 1 :] if own else path
    called = {below(inner.path) for r in generated for inner in r.inner if inner.path}
    nodes = {x for r in generated for n in r.nodes for x in n.all_input_nodes if x.op == "get_attr"}
    read = {below(str(n.target)) for n in nodes if str(n.target).startswith(f"{own}." if own else "")}
    named: dict[int, list[str]] = {}
    for path, inner in module.named_modules(remove_duplicate=False):
        named.setdefault(id(inner), []).append(path)
        for name, tensor in tensors_of(inner):
            named.setdefault(id(tensor), []).append(f"{path}.{name}" if path else name)
    for paths in named.values():
        if len(paths) > 1 and not (called | read).isdisjoint(paths):
            first, *others = [tuple(path.split(".")) for path in paths]
            yield from ((first, other) for other in others)


def _lists(module: nn.Module, way: Way) -> Iterator[tuple[Way, tuple[str, ...]]]:
    """The lists of modules that a module's code may go through: itself, and those it holds."""
    if isinstance(module, _LISTS):
        yield way, names_in(module)
    for name, child in module.named_children():
        if isinstance(child, _LISTS):
            yield from _lists(child, (*way, name))
