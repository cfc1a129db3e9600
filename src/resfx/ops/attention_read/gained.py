"""A read whose query brings the gain of its norm, as one kernel for small calls."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from resfx.ops.native import small_calls


def gained_read(
    sources: Sequence[Tensor], query: Tensor, gain: Tensor, base: Tensor | None, eps: float, relative: bool
) -> Tensor | None:
    """:func:`resfx.ops.attention_read.formula.attention_read` with ``query * gain`` in the place of its query.

    Args:
        query, gain: ``(d,)``.

    Returns:
        ``(..., d)``; ``None`` where there is no kernel for this, or gradients are recorded.
    """
    if (library := small_calls()) is None:
        return None
    found = library.run("GainedRead", [query, base, gain, *sources], (eps,), (relative,))
    return found[0] if found else None
