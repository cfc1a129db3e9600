"""ShortConv: a depthwise convolution over a few positions on the projections of an attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resfx.methods.options import wrong

from .local_conv import LocalConvMethod


@dataclass(frozen=True, kw_only=True)
class ShortConv(LocalConvMethod):
    """``act(conv(x))`` on queries, keys and values, as linear-attention models have it; with a residual by default.

    The published form (``ShortConvolution`` of flash-linear-attention) is SiLU without residual, which no weights make
    the identity: ask for it with ``residual=False, start="published"``. Bidirectional hosts get a centred kernel.

    Attributes:
        on: letters of ``"qkv"``; all three of a fused projection share one convolution over its features.
        kernel: positions read.
        bias: a bias per channel.
        activation: ``"silu"`` or ``"none"``, after the convolution.
        residual: add the input after the activation.
    """

    name: ClassVar[str] = "short_conv"
    parameters: ClassVar[str] = "kernel * width for each point"
    kept: ClassVar[str] = "kernel - 1 positions of q, k and v"
    saved: ClassVar[str] = "3 d"  # 3 d before and after the convolution, for a block's two adds

    on: str = "qkv"
    activation: str = "silu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.on or set(self.on) - set("qkv") or len(set(self.on)) != len(self.on):
            raise wrong(self, "on", "on must be letters of 'qkv', each once")

    @property
    def points(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(sorted(self.on))
