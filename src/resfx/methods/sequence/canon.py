"""Canon layers: a residual depthwise convolution over four positions, at four points of a block (arXiv 2512.17351)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resfx.methods.options import wrong

from .local_conv import LocalConvMethod

POINTS = {"A": ("attention",), "B": ("q", "k", "v"), "C": ("mlp",), "D": ("hidden",)}


@dataclass(frozen=True, kw_only=True)
class Canon(LocalConvMethod):
    """``h_t + sum_{s<k} w_s h_{t-s}`` per channel at points of a block.

    ==== =====================================================================================================
    A    what the attention reads, after the input norm
    B    queries, keys and values after projection and a norm over the head, before they are rotated
    C    what the MLP reads, after its norm
    D    the MLP's gate and up projections, before the activation
    ==== =====================================================================================================

    They act on the input of a branch, never on the stream. Bidirectional hosts get a centred kernel.
    ``start="preserve"`` has zero weights: bit for bit the host; ``"published"`` draws them from ``U(-1/sqrt(k),
    1/sqrt(k))``.

    Attributes:
        at: the points, letters of ``"ABCD"``.
        kernel: positions read, ``k``.
        bias: a bias per channel.
        activation: ``"none"`` or ``"silu"``, after the convolution.
        residual: add the input; without it a preserving start has one at the position itself, which needs
            ``activation="none"``.
    """

    name: ClassVar[str] = "canon"
    parameters: ClassVar[str] = "kernel * width for each point"
    kept: ClassVar[str] = "kernel - 1 positions at each point"
    saved: ClassVar[str] = "9 d / 2"  # d, 3 d, d and 4 d at the points of a block, for its two adds

    at: str = "ABCD"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.at or set(self.at) - set(POINTS) or len(set(self.at)) != len(self.at):
            raise wrong(self, "at", "at must be letters of 'ABCD', each once")

    @property
    def points(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(p for letter in sorted(self.at) for p in POINTS[letter])
