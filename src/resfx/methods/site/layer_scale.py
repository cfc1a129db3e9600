"""LayerScale (CaiT, arXiv 2103.17239): a learned gain for every feature of what a branch adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from resfx.methods.base import Method, Place, factory_of
from resfx.methods.learned import Learned, constant, empty
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import refuse_idle

from .sums import host_sum, weighted


@dataclass(frozen=True, kw_only=True)
class LayerScale(Method):
    """``x + g * f`` with a gain ``g (d,)``.

    ``start="published"`` has ``g = init`` everywhere; ``"preserve"`` learns the difference from the host,
    ``(x + f) + (g - 1) * f`` with ``g = 1``. ``d`` parameters per site.

    Attributes:
        init: the published start. The paper has 0.1 up to depth 18, 1e-5 up to 24 and 1e-6 beyond.
    """

    name: ClassVar[str] = "layer_scale"
    parameters: ClassVar[str] = "d"
    saved: ClassVar[str] = "d"

    init: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "preserve":
            refuse_idle(self, ("init",), "is the published start, and start='preserve' has a gain of 1",
                        "start='published'")  # fmt: skip

    def build(self, place: Place) -> nn.Module:
        return Gain(self.start == "preserve", self.init, place.width, place)


class Gain(Learned):
    """``x + g * f`` for ``g`` of ``size`` numbers, kept as its distance from one where the host is preserved."""

    def __init__(self, preserve: bool, init: float, size: int, place: Place) -> None:
        super().__init__()
        self.preserve, self.init = preserve, 0.0 if preserve else init
        self.gain = empty(size, **factory_of(place))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        constant(self.init)(self.gain)

    def forward(self, x: Tensor, f: Tensor, c: Tensor | None, total: Tensor | None = None) -> Tensor:
        base = host_sum(x, f, total) if self.preserve else x
        return weighted([(self.gain, f)], base, base.dtype)

    def observe(self, x: Tensor, f: Tensor, c: Tensor | None, total: Tensor | None = None) -> Observations:
        """``gain``, ``g``, of each feature, or one number."""
        gain = self.gain + 1 if self.preserve else self.gain
        return {"gain": Observed(gain, ("feature",)) if len(gain) > 1 else Observed(gain[0])}

    def extra_repr(self) -> str:
        return f"{len(self.gain)}, start={self.init}"
