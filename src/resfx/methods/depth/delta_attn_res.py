"""Delta Attention Residuals (arXiv 2605.18855): the stream stays, every sublayer also reads over what was added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import empty, normal, zeros
from resfx.methods.observe import Observations, Observed, attention_map
from resfx.methods.options import refuse_idle
from resfx.ops.attention_read.formula import attention_read
from resfx.ops.scores import rms_scores

from .base import DepthMethod, DepthPlace, Read, in_blocks


@dataclass(frozen=True, kw_only=True)
class DeltaAttnRes(DepthMethod):
    """``h = x + sum_i a_i s_i`` with ``a = softmax_i(w . RMSNorm(s_i))`` at the input of every sublayer but the first.

    The sources are the embedding and every sublayer's output; the shortcut keeps ``x``. With ``block=S`` they are the
    embedding and the true sums of ``S`` sublayers each, ``x_j - x_{j-1}``. (The authors' code subtracts the previous
    *difference* instead, which gives alternating sums; that is not offered.)

    ``start="preserve"`` is ``x + g sum_i a_i s_i`` with ``g = 0``; queries start from the normal distribution of the
    released code, since a zero query behind a zero gate would learn two steps late. ``start="published"`` has no gate
    and the paper's zero query: ``x (1 + 1/n)``, which only a pre-norm host's norms undo, and only where the sources
    add up to ``x`` (full form, or ``partial=True``).

    Attributes:
        block: sublayers in a block, or ``None`` for every output as a source of its own.
        partial: the sum of the unfinished block is a source too (the released code leaves it out).
        null: a learned source, zero at first, so that a read can attend to nothing.
        query: how published queries start: ``"zero"`` (paper) or ``"normal"`` with standard deviation 0.02 (what the
            released code does).
        eps: of the key norm.
    """

    name: ClassVar[str] = "delta_attnres"
    unit: ClassVar = "sublayer"
    carries: ClassVar = "outputs"
    parameters: ClassVar[str] = "2 d + 1"
    crosses: ClassVar[str] = "the state and what each sublayer wrote"
    saved: ClassVar[str] = "d + 4 n"

    block: int | None = None
    partial: bool = True
    null: bool = False
    query: Literal["zero", "normal"] = "zero"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(block=self.block, eps=self.eps)
        if self.start == "preserve":
            refuse_idle(self, ("query",), "is the published start, and start='preserve' always draws normal queries",
                        "start='published'")  # fmt: skip

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        groups = in_blocks(read, self.block or 1, self.partial)
        return groups if read and not last and len(groups) + self.null > 1 else None

    def targets(self, last: bool) -> tuple[str, ...]:
        return ("input",)

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        return DeltaRead(self, place)


class DeltaRead(Read):
    """One read: query, key-norm gain, and the null source and gate where there are any."""

    config: DeltaAttnRes

    def __init__(self, config: DeltaAttnRes, place: DepthPlace) -> None:
        super().__init__(config)
        self.eps = config.eps
        factory = factory_of(place)
        self.query, self.gain = (empty(place.width, **factory) for _ in range(2))
        self.null = empty(place.width, **factory) if config.null else None
        self.gate = empty(1, **factory) if self.preserve else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        drawn = self.preserve or self.config.query == "normal"
        (normal(0.02) if drawn else zeros)(self.query)
        nn.init.ones_(self.gain)
        for parameter in (self.null, self.gate):
            if parameter is not None:
                zeros(parameter)

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        return attention_read(self._with_null(sources, x), self.query * self.gain, x, self.gate, eps=self.eps)

    def observe(self, sources: list[Tensor], x: Tensor) -> Observations:
        """``weights``, ``a``, and their entropy, which counts the null source; its share is ``null``; and ``gate``."""
        weights = rms_scores(self._with_null(sources, x), self.query * self.gain, self.eps).softmax(-1)
        found = attention_map(weights)
        if self.null is not None:
            found["weights"] = Observed(weights[..., :-1], ("source",))
            found["null"] = Observed(weights[..., -1])
        if self.gate is not None:
            found["gate"] = Observed(self.gate.squeeze(-1))
        return found

    def _with_null(self, sources: list[Tensor], x: Tensor) -> list[Tensor]:
        return sources if self.null is None else [*sources, self.null.expand_as(x)]
