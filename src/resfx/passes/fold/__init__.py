"""A rewritten graph folded into calls again: the user's modules where nothing changed, generated code where it did."""

from __future__ import annotations

import logging

from torch import fx, nn

from resfx.errors import VariantError
from resfx.methods.sequence.mixer import Mixer
from resfx.passes.find.graph import Capture

from .code import Writer
from .function import Code, NotExpressible, Shared
from .plan import Plan, from_function, only_handed_on
from .region import Region

__all__ = ["Code", "Plan", "Region", "Shared", "fold", "from_function", "only_handed_on"]

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

    def mixer(node: fx.Node) -> Mixer | None:
        module = tree.get_submodule(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, Mixer) else None

    plan = Plan(capture, lambda n: mixer(n) is not None, lambda n: bool((m := mixer(n)) and m.streams))
    while True:
        codes: dict[Region, Code] = {}
        try:
            for region in [r for r in plan.root.below() if r.generated][::-1]:
                codes[region] = Writer(plan, region, tree, prefix, codes).write(shared)
            return plan, codes
        except NotExpressible as error:
            stuck = error.region or region
            if stuck.outer is None:
                raise VariantError(
                    f"cannot write the code of {type(tree).__name__}", f"it would need {error}",
                    "exclude= the modules around it, or report it",
                ) from error  # fmt: skip
            _log.debug("%s is not called as a module: the code around it would need %s", stuck.name, error)
            plan.dissolve(stuck)
