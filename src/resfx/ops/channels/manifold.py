"""The read of manifold-constrained Hyper-Connections as one kernel for small calls (arXiv 2512.24880, eq. 7 to 9)."""

from __future__ import annotations

from torch import Tensor

from resfx._torch import any_autocast
from resfx.ops.native import small_calls

Read = tuple[Tensor, tuple[Tensor, Tensor | None]]


def manifold_read(
    state: Tensor,
    projection: Tensor,
    alpha: Tensor,
    pre: Tensor,
    post: Tensor,
    res: Tensor | None,
    origin: Tensor | None,
    eps: float,
    rounds: tuple[int, int],
) -> Read | None:
    """What :class:`resfx.methods.wide.mhc.ManifoldRead` computes, step by step, in one pass over the state.

    Args:
        state: ``X``, ``(..., n, d)``.
        projection: rows of ``H_pre``, ``H_post`` and ``H_res``, ``(2n [+ n^2], n d)``, in the type of the state.
        alpha: their scales, ``(3,)``, or ``(2,)`` without ``H_res``.
        pre, post: ``(n,)``.
        res: ``(n, n)``; ``None`` for no ``H_res``.
        origin: what ``pre`` was at the start, ``(n,)``; ``None``: the weights of the read sum to one.
        eps: of the norm.
        rounds: of Sinkhorn's scaling, and Newton steps behind them.

    Returns:
        The read ``(..., d)``, and ``H_post (..., n)`` with ``H_res (..., n, n)``, float32 for half types; ``None``
        where there is no kernel for this, or gradients are recorded.
    """
    if (library := small_calls()) is None or any_autocast():
        return None
    found = library.run("ManifoldRead", (state, projection, alpha, pre, post, res, origin), (eps,), rounds)
    if not found:
        return None
    x, written, *mixed = found
    return x, (written, mixed[0] if mixed else None)
