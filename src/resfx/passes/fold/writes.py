"""What a call does beside its result, in generated code: the attributes that it sets, what it adds to lists and dicts
that modules hold, and what the calls within it do of that kind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator

from torch import fx, nn

from resfx.errors import VariantError
from resfx.passes.capture.marking.record import Act, CallRecord, MethodOf, Mode, keep
from resfx.passes.capture.structure import Template
from resfx.passes.find.operators import is_inplace
from resfx.report.progress import warn

from .function import NotExpressible
from .plan import Plan
from .region import Region
from .values import follow, places_of

Compose = Callable[[Template, Callable[[int], str]], str]


def beside(plan: Plan, region: Region, compose: Compose, text: Callable[[fx.Node], str]) -> Iterator[str]:
    """The statements of a region's own code and of the calls that were taken into it.

    Args:
        compose: a value as text, by its template and the text of its leaves.
        text: of a node.

    Raises:
        VariantError: where it leaves values in an object that cannot be watched.
    """
    marks = {n.args[1:]: n for n, home in plan.home.items() if n.target is keep and home is region}
    for call in sorted({region.call, *region.dissolved}, key=lambda c: c.number):
        for write in call.writes:
            if not write.name:
                cls = plan.capture.objects[write.owner[1]].cls
                raise VariantError(
                    f"cannot write the code of {region.name}",
                    f"it leaves values in a {cls.__name__}, of which it cannot be told what is set and read later",
                    "pass an object of a class of your own, without slots",
                )  # fmt: skip
            if write.value is None:
                warn(
                    f"{region.name} changes {write.name!r} while it is called, and its rewritten code does not: that"
                    " sets numbers, texts and tensors, and adds to lists and dicts"
                )
                continue
            value = compose(write.value, lambda slot, call=call: text(marks[call.number, slot].args[0]))  # type: ignore[misc, arg-type]
            attribute = f"{compose(write.owner, str)}.{write.name}"
            yield f"{attribute}.{write.how}({value})" if write.how else f"{attribute} = {value}"


class Modes:
    """The statements that set the mode of modules, each before the calls that begin in it."""

    def __init__(self, region: Region) -> None:
        modes = [mode for call in (region.call, *region.dissolved) for mode in call.modes]
        self._waiting = deque(sorted(modes, key=lambda mode: mode.number))
        self._last: Mode | None = None

    def until(self, inner: Region | None, compose: Compose) -> Iterator[str]:
        """Those that come before a call, or before the end.

        Raises:
            NotExpressible: where the call began in a mode that has been changed already.
        """
        if inner is not None and self._last is not None and inner.call.number < self._last.before:
            raise NotExpressible(f"the mode of {'.'.join(self._last.ways[0])} before it was set", inner)
        while self._waiting and (inner is None or self._waiting[0].before <= inner.call.number):
            mode = self._last = self._waiting.popleft()
            text = compose(("owned", tuple(".".join(way) for way in mode.ways)), str)
            if not mode.method:
                yield f"{text}.training = {compose(mode.value, str)}"
                continue
            args, kwargs = mode.value[2]
            given = [compose(part, str) for part in args[2]]
            given += [f"{name}={compose(part, str)}" for name, part in zip(kwargs[1], kwargs[2], strict=True)]
            yield f"{text}.{mode.method}({', '.join(given)})"


def writers_of(plan: Plan, tree: nn.Module, target: str) -> list[CallRecord]:
    """The calls that put another tensor in the place of one that a module holds.

    Raises:
        NotExpressible: where it has several places: which of them was read, a graph does not say.
    """
    if not plan.writers:
        return []
    places = list(places_of(tree, follow(tree, target)))
    replaced = [place for place in places if place in plan.writers]
    if replaced and len(places) > 1:
        raise NotExpressible(f"{' and '.join(places)} apart, one tensor of which the call replaces {replaced[0]}")
    return plan.writers[replaced[0]] if replaced else []


def acts_of(region: Region) -> frozenset[Act]:
    """What the code of a call does that generated code does not.

    Raises:
        VariantError: where it seeds torch's generators: every random number that comes after would be another one.
    """
    acts = frozenset().union(*(call.acts for call in (region.call, *region.dissolved)))
    for act in sorted(acts, key=str):
        if act.kind == "seed":
            raise VariantError(
                f"cannot write the code of {region.name}", f"it {act}, which generated code does not",
                "do so outside of forward, or in a submodule without residual adds, which is called as it is; or"
                " exclude= the adds of this one",
            )  # fmt: skip
    return acts


def refuse_lost(plan: Plan, called: Collection[Region]) -> None:
    """Hold generated code to everything that the capture's calls do beside their results: each is called, once.

    Args:
        called: the calls that generated code makes.

    Raises:
        VariantError: naming a call that is left out, or made twice.
    """
    over = {plan.home[n] for n in plan.graph.nodes if n in plan.home and is_inplace(n)}
    for region in plan.root.below():
        of_object = isinstance(region.call.target, MethodOf) and (region.call.alters or region in over)
        if not of_object and not any(call.writes or call.modes for call in (region.call, *region.dissolved)):
            continue
        around = list(region.around())
        copied = of_object and any(r.call in plan.copies for r in around)
        if copied or any(r.outer is not None and r.outer.generated and r not in called for r in around):
            raise VariantError(
                f"cannot write the code of {plan.capture.calls[0].name or 'the model'}",
                f"{region.name}, which leaves values in an object, would {'run twice' if copied else 'not run'}",
                "exclude= the modules around it, or report it",
            )
