"""Reading off a plan what the code of a call is good for."""

from __future__ import annotations

import torch
from torch import fx, nn

from resfx.passes.capture.clone import signature_of
from resfx.passes.capture.guards import Length, shape_guard

from .guard import Guard, autocast_state, names_in
from .plan import Plan, from_function, is_size, known_in, only_handed_on
from .region import Region
from .values import bound


def guard_of(plan: Plan, region: Region, module: nn.Module, varying: set[tuple[type, str]]) -> Guard:
    """What the code of a call was made for.

    Args:
        module: the one that is called.
        varying: integer fields of objects that are inputs.
    """
    own = tuple(region.path.split(".")) if region.path else ()
    generated = [r for r in region.below() if r.generated]
    reads = {w[len(own) :]: v for r in generated for w, v in r.call.reads.items() if w[: len(own)] == own}
    lists = {
        way: names_in(child)
        for r in generated
        for name, child in module.get_submodule(_below(r, own)).named_children()
        for way in [tuple(p for p in (*_below(r, own).split("."), name) if p)]
        if isinstance(child, (nn.ModuleList, nn.ModuleDict))
    }
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
    seen = {o.number for o in objects if o.given and o.number in looked}
    inside |= {at: leaf for leaf, at in place.items() if at[0] in seen and isinstance(leaf, fx.Node)}
    values = [*tensors.values(), *(Length(v) if is_size(x) else v for x in inside.values() for v in [x.meta["val"]])]
    return Guard(
        arguments=bound(region.call.given, list(signature_of(module).parameters.values())),
        objects={o.number: (o.cls, o.first if o.number in looked else None) for o in objects},
        free=free,
        used=(*tensors, *inside), kinds=tuple((v.dtype, v.device) for v in values),
        shapes=shape_guard(values, plan.capture.known), reads=tuple(reads.items()),
        lists=tuple(lists.items()), autocast=autocast_state(), grad=plan.capture.grad, varying=varying,
    )  # fmt: skip


def _below(region: Region, own: tuple[str, ...]) -> str:
    """A call's module as seen from the one that is called ``own``."""
    return ".".join((region.path or "").split(".")[len(own) :])
