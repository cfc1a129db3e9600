"""A rewritten graph folded into calls again: the user's modules where nothing changed, generated code where it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx, nn

from resfx.errors import VariantError
from resfx.methods.sequence.mixer import Mixer
from resfx.passes.capture.source import Source
from resfx.passes.capture.trace import Capture
from resfx.report.progress import warn

from .code import Writer
from .function import Code, Folded, NotExpressible, Shared
from .guard import Always
from .made_for import guard_of
from .plan import Plan
from .region import Region
from .stages import Cut, StageCode, StageWriter
from .whole import forward_of_graph
from .writes import acts_of, refuse_lost

__all__ = ["Code", "Folded", "Shared", "StageCode", "fold", "fold_in_stages"]


def fold(
    capture: Capture, tree: nn.Module, source: Source, shared: Shared, prefix: str = "",
    beside: Callable[[str], bool] = lambda path: False, whole: bool = False,
) -> list[Folded]:  # fmt: skip
    """The calls that need code of their own, and that code.

    Args:
        tree: the captured module, with the new modules below ``resfx``.
        source: where the capture comes from.
        shared: functions by their text; equal blocks share one.
        prefix: the path of ``tree`` in the whole model.
        beside: of a path, whether no keyword gets through to the rewritten module there.
        whole: the whole call runs code of its own, whatever is rewritten in it.

    Raises:
        VariantError: where the code of the whole call cannot be written.
    """
    if not capture.calls:  # a graph that the user already has
        code = Code(forward_of_graph(capture.graph, type(tree).__name__), (), str(capture.graph))
        flags = tuple(m.training for m in tree.modules()) if source.traced else None
        return [Folded("", code, Always(flags), False)]
    plan = plan_of(capture, tree, beside)
    if whole:
        plan.open_root()
    while True:
        codes: dict[Region, Code] = {}
        called: set[Region] = set()
        try:
            for region in [r for r in plan.root.below() if r.generated][::-1]:
                writer = Writer(plan, region, tree, prefix, codes)
                codes[region] = writer.write(shared)
                called |= writer.called
            refuse_lost(plan, called)
            return folded(plan, codes, tree, source)
        except NotExpressible as error:
            give_way(plan, error.region or region, error)


def folded(plan: Plan, codes: dict[Region, Code], tree: nn.Module, source: Source) -> list[Folded]:
    """Calls with their code, and what that was made for; equal blocks share one guard and one code, which a cache then
    holds.

    Raises:
        VariantError: where the code of a call does to torch's generators what generated code does not.
    """
    found: list[Folded] = []
    for region, code in codes.items():
        path = region.path
        assert path is not None
        guard = None if region.passed_on else guard_of(plan, region, tree.get_submodule(path), source.varying)
        if guard is not None:
            for form in [form for r in (region, *region.told()) for form in r.forms]:
                form.guards.add(guard)
        one = Folded(path, code, guard, not plan.acts_in(region), acts_of(region))
        twins = (f for f in found if guard is not None and f.code.like(code) and guard.same(f.guard))
        if (twin := next(twins, None)) is not None:
            one.code, one.guard = twin.code, twin.guard
        found.append(one)
    return found


def fold_in_stages(
    capture: Capture, tree: nn.Module, source: Source, shared: Shared, starts: Sequence[str], ranks: int | None
) -> tuple[list[Folded], list[StageCode]]:
    """The code of a whole call in stages, each but the first beginning with the call of one of ``starts``, and that of
    the calls inside that need some.

    Args:
        capture, tree, source, shared: as for :func:`fold`.
        ranks: how many processes take the stages in turns, each keeping what it has for its later ones; without, every
            stage has a process of its own.

    Raises:
        VariantError: where a stage cannot begin there, or its code cannot be written.
    """
    plan = plan_of(capture, tree)
    while True:
        region = plan.root
        try:
            cut = Cut(plan, tree, starts, ranks)
            codes: dict[Region, Code] = {}
            for region in [r for r in plan.root.below() if r.generated and r is not plan.root][::-1]:
                codes[region] = Writer(plan, region, tree, "", codes).write(shared)
            region = plan.root
            stages = [StageWriter(cut, i, codes).stage_code(shared) for i in range(len(starts) + 1)]
            return folded(plan, codes, tree, source), stages
        except NotExpressible as error:
            give_way(plan, error.region or region, error)


def plan_of(capture: Capture, tree: nn.Module, beside: Callable[[str], bool] = lambda path: False) -> Plan:
    """What of a rewritten capture runs code of its own."""

    def mixer(node: fx.Node) -> Mixer | None:
        module = tree.get_submodule(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, Mixer) else None

    listed = lambda path: isinstance(tree.get_submodule(path), nn.Sequential)
    return Plan(capture, lambda n: mixer(n) is not None, lambda n: bool((m := mixer(n)) and m.streams), beside, listed)


def give_way(plan: Plan, stuck: Region, error: NotExpressible) -> None:
    """Open a call that cannot be made where it stands.

    Raises:
        VariantError: if it is the whole.
    """
    if stuck.outer is None:
        raise VariantError(
            f"cannot write the code of {plan.capture.calls[0].name or 'the model'}", f"it would need {error}",
            "exclude= the modules around it, or report it",
        ) from error  # fmt: skip
    if stuck.path is not None:
        warn(
            f"{stuck.name} is not called as a module in rewritten code, which would need {error}: its code runs as part"
            " of what is around it, and its hooks do not run"
        )
    plan.dissolve(stuck)
