"""A rewritten graph folded into calls again: the user's modules where nothing changed, generated code where it did."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import fx, nn

from resfx.errors import VariantError
from resfx.methods.sequence.mixer import Mixer
from resfx.passes.find.graph import Capture

from .code import Writer
from .function import Code, NotExpressible, Shared
from .plan import Plan, from_function, only_handed_on
from .region import Region
from .stages import Cut, StageCode, StageWriter

__all__ = ["Code", "Plan", "Region", "Shared", "StageCode", "fold", "fold_in_stages", "from_function", "only_handed_on"]

_log = logging.getLogger("resfx")


def fold(capture: Capture, tree: nn.Module, prefix: str, shared: Shared) -> tuple[Plan, dict[Region, Code]]:
    """The generated code of every call that needs some.

    Args:
        tree: the captured module, with the new modules below ``resfx``.
        prefix: its path in the whole model.
        shared: functions by their text; equal blocks share one.

    Raises:
        VariantError: where the code of the whole call cannot be written.
    """

    plan = plan_of(capture, tree)
    while True:
        codes: dict[Region, Code] = {}
        try:
            for region in [r for r in plan.root.below() if r.generated][::-1]:
                codes[region] = Writer(plan, region, tree, prefix, codes).write(shared)
            return plan, codes
        except NotExpressible as error:
            give_way(plan, error.region or region, error)


def fold_in_stages(
    capture: Capture, tree: nn.Module, starts: Sequence[str], ranks: int | None, shared: Shared
) -> tuple[Plan, dict[Region, Code], list[StageCode]]:
    """The code of a whole call in stages, each but the first beginning with the call of one of ``starts``, and that of
    the calls inside that need some.

    Args:
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
            return plan, codes, [StageWriter(cut, i, codes).stage_code(shared) for i in range(len(starts) + 1)]
        except NotExpressible as error:
            give_way(plan, error.region or region, error)


def plan_of(capture: Capture, tree: nn.Module) -> Plan:
    """What of a rewritten capture runs code of its own."""

    def mixer(node: fx.Node) -> Mixer | None:
        module = tree.get_submodule(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, Mixer) else None

    return Plan(capture, lambda n: mixer(n) is not None, lambda n: bool((m := mixer(n)) and m.streams))


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
    _log.debug("%s is not called as a module: the code around it would need %s", stuck.name, error)
    plan.dissolve(stuck)
