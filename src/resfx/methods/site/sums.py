"""What the learned adds share: the host's own sum, and a correction of it that starts at zero."""

from __future__ import annotations

import torch
from torch import Tensor

from resfx.ops.register import accumulator, in_type


def host_sum(x: Tensor, f: Tensor, total: Tensor | None) -> Tensor:
    """``x + f`` as the host rounds it, where that is more than a plain add."""
    return x + f if total is None else total


def weighted(terms: list[tuple[Tensor, Tensor]], base: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``base + sum_i w_i t_i``, summed in float32 for half types.

    Args:
        terms: pairs of a weight, ``(1,)`` or ``(d,)``, and a tensor ``(..., d)``.
        base: kept bit for bit where every weight is zero.
        dtype: of the result.
    """
    wide = accumulator(dtype)
    parts = [in_type(w, wide) * in_type(t, wide) for w, t in terms]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    total = in_type(total, dtype)
    return total if base is None else base + total
