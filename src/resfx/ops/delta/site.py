"""A whole residual site as one kernel for small calls: gates and delta shortcut in one pass over the row."""

from __future__ import annotations

from torch import Tensor

from resfx._torch import any_autocast
from resfx.ops.native import small_calls

SOURCES = ("context", "stream", "sublayer", "constant")
"""What a target is read from."""

Weights = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Weight ``(1, width)`` and bias ``(1,)`` of the gate, and those of the target, as far as there are any."""


def delta_site(
    x: Tensor,
    f: Tensor,
    context: Tensor,
    weights: Weights,
    mix: Tensor | None,
    total: Tensor | None,
    reals: tuple[float, float, float],
    wholes: tuple[bool, bool, int],
) -> Tensor | None:
    """:func:`resfx.ops.delta.formula.delta_shortcut` with its gates, which are read from the tensors at hand:
    ``beta = 2 sigmoid(gate(context))``, or ``2 tanh(...)`` with ``erase``, and ``v = target(source)``, squashed to
    ``(0, scale)`` where that is not zero.

    Args:
        x, f, mix, total: as of :func:`resfx.ops.delta.formula.delta_shortcut`.
        context: ``(..., c)``.
        weights: of the two maps.
        reals: ``eps2``, ``scale``, and the target where it is a constant.
        wholes: ``add``, ``erase``, and the number of the target's source in :data:`SOURCES`.

    Returns:
        The new stream ``(..., d)``; ``None`` where there is no kernel for this, or gradients are recorded.
    """
    if (library := small_calls()) is None or any_autocast():
        return None
    found = library.run("DeltaSite", (x, f, context, *weights, mix, total), reals, wholes)
    return found[0] if found else None
