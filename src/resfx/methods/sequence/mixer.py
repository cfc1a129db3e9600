"""What every mixer over positions is: a module that can go on where an earlier call stopped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resfx.methods.learned import Learned

State = tuple[Tensor, ...]


class Mixer(Learned):
    """Mixes ``h (batch, positions, width)`` over positions.

    ``forward(h, mask=None, state=None, keep=False)``: ``mask (batch, at least positions)`` is true at real tokens,
    its last columns are those of ``h``; ``state`` is what an earlier call kept. With ``keep`` the result is the pair
    of the output and the state after ``h``: tensors with the batch first, of sizes that do not depend on the number of
    positions seen, so that a cache can hold, select and repeat their rows.

    Attributes:
        streams: number of tensors in the state; 0 for a mixer that reads later positions, or only its own.
        layout: ``"btc"``, or ``"bthd"`` and ``"bhtd"`` for heads split off the features.
    """

    streams: int = 0
    layout: str = "btc"

    def reset_parameters(self) -> None:
        """Nothing to start where there are no parameters."""

    def to_rows(self, h: Tensor) -> Tensor:
        """``h`` as ``(batch, positions, width)``."""
        if self.layout == "bhtd":
            h = h.transpose(1, 2)
        return h if self.layout == "btc" else h.flatten(2)

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`to_rows`."""
        if self.layout == "btc":
            return rows
        heads = rows.unflatten(2, (-1, like.shape[-1]))
        return heads.transpose(1, 2) if self.layout == "bhtd" else heads


def readable(h: Tensor, mask: Tensor | None) -> Tensor | None:
    """The columns of a padding mask that belong to ``h``, as booleans."""
    return None if mask is None else mask[:, -h.shape[1] :].ne(0)


def last(x: Tensor, count: int, axis: int) -> Tensor:
    """The last ``count`` entries along an axis in memory of their own, zeros where there are fewer."""
    pad = [0, 0] * (x.dim() - 1 - axis % x.dim()) + [count, 0]
    padded = nn.functional.pad(x, pad)
    return padded.narrow(axis, padded.shape[axis] - count, count).clone(memory_format=torch.contiguous_format)
