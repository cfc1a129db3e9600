"""Value residual learning (ResFormer and SVFormer, arXiv 2410.17897): layers mix in the first layer's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from resfx.errors import OptionError
from resfx.methods.base import Place, factory_of
from resfx.methods.learned import Learned, empty, set_values
from resfx.methods.observe import Observations, Observed
from resfx.methods.options import refuse_idle, wrong
from resfx.ops.weighted_sum.formula import weighted_sum

from .base import RouteMethod, RoutePlace


@dataclass(frozen=True, kw_only=True)
class ValueResidual(RouteMethod):
    """``V'_n = a_n V_1 + b_n V_n`` in every layer after the first; the attention goes on with ``V'_n``.

    ``V_n`` is what layer ``n`` projects (for grouped heads, before they are repeated). ``start="published"`` has the
    paper's ``a = b = 0.5``; ``"preserve"`` learns the difference from the host, ``V_n + a V_1 + (b - 1) V_n`` with both
    weights zero: bit for bit the host.

    ========== ======================================================================================================
    form       what a layer reads
    ========== ======================================================================================================
    residual   the first layer's values and its own (ResFormer)
    dense      those of all layers up to its own, a weight each (Dense-ResFormer); earlier ones start at zero but the
               first
    shared     the first layer's alone, ``V_1`` (SVFormer): no parameters with ``start="published"``, where the
               projections of later layers are dead weight; with ``"preserve"`` ``V_n + s (V_1 - V_n)``, ``s = 0``
    ========== ======================================================================================================

    Attributes:
        form: as above.
        learned: learn the weights (Learnable-ResFormer); else they stay where they start (Identity- and
            Constant-ResFormer), which needs ``start="published"``.
        first, own: where ``a`` and ``b`` start with ``start="published"``. The paper's constant form has 2 and 1, its
            sparse form 5 and 1.
        per_head: weights of its own for each head.
        last: only the last so many layers read (Sparse-ResFormer); ``None`` for all but the first.
    """

    name: ClassVar[str] = "value_residual"
    parameters: ClassVar[str] = "2, or 2 heads with per_head"
    crosses: ClassVar[str] = "1 and the first layer's values"
    saved: ClassVar[str] = "d / 2"  # the layer's own values, for a block's two adds

    form: Literal["residual", "dense", "shared"] = "residual"
    learned: bool = True
    first: float = 0.5
    own: float = 0.5
    per_head: bool = False
    last: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last is not None and self.last < 1:
            raise wrong(self, "last", "last must be at least 1 layer")
        if self.form == "shared":
            refuse_idle(
                self, ("first", "own"), "is a weight of a mixture, and form='shared' has none", "form='residual'"
            )
        if self.start == "preserve":
            refuse_idle(self, ("first", "own"), "is the published start, and start='preserve' has weights of 0",
                        "start='published'")  # fmt: skip
        if not self.learned and self.start == "preserve":
            raise OptionError("ValueResidual: learned=False never leaves the host's values",
                              "start='preserve', where the weights are zero", "start='published'")  # fmt: skip

    def sources(self, layer: int, layers: int) -> list[int] | None:
        if layer == 0 or (self.last is not None and layer < layers - self.last):
            return None
        return list(range(layer)) if self.form == "dense" else [0]

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, RoutePlace)
        return SharedValue(self, place) if self.form == "shared" else ValueMixture(self, place)


class ValueMixture(Learned):
    """Weights ``(n,)``, or ``(heads, n)``, of ``n - 1`` sources and, last, the layer's own values."""

    weight: Tensor

    def __init__(self, config: ValueResidual, place: RoutePlace) -> None:
        super().__init__()
        self.config = config
        self.shape = (place.heads or 1,) * config.per_head + (place.sources + 1,)
        if config.learned:
            self.weight = empty(*self.shape, **factory_of(place))
        self.hold_constants(**factory_of(place))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.config.learned:
            set_values(self.weight, self._start())
        self.write_constants()

    def _start(self) -> Tensor:
        start = torch.zeros(self.shape)
        if self.config.start == "published":
            start[..., 0], start[..., -1] = self.config.first, self.config.own
        return start

    def constants(self) -> dict[str, Tensor]:
        """The weights, where they are numbers of the config."""
        return {} if self.config.learned else {"weight": self._start()}

    def forward(self, sources: list[Tensor], v: Tensor) -> Tensor:
        weight = self.weight.expand(*v.shape[:-1], -1) if self.config.per_head else self.weight
        return weighted_sum([*sources, v], weight, v if self.config.start == "preserve" else None)

    def observe(self, sources: list[Tensor], v: Tensor) -> Observations:
        """``weights`` of the sources and, last, of the layer's own values, for each head where they have their own;
        those of the learned difference from the host where its start is preserved."""
        return {"weights": Observed(self.weight, ("head",) * self.config.per_head + ("source",))}

    def extra_repr(self) -> str:
        return f"start={self.config.start}, weights={tuple(self.weight.shape)}"


class SharedValue(Learned):
    """The first layer's values in the place of the layer's own, or part of the way there."""

    def __init__(self, config: ValueResidual, place: RoutePlace) -> None:
        super().__init__()
        shape = (place.heads or 1,) if config.per_head else (1,)
        self.share = empty(*shape, **factory_of(place)) if config.start == "preserve" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.share is not None:
            nn.init.zeros_(self.share)

    def forward(self, sources: list[Tensor], v: Tensor) -> Tensor:
        return sources[0] if self.share is None else v + (self.share.unsqueeze(-1) * (sources[0] - v)).to(v.dtype)

    def observe(self, sources: list[Tensor], v: Tensor) -> Observations:
        """``share`` of the first layer's values, for each head where they have their own."""
        share = v.new_ones(1) if self.share is None else self.share
        return {"share": Observed(share, ("head",)) if len(share) > 1 else Observed(share[0])}
