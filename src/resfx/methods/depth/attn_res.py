"""Attention Residuals (arXiv 2603.15031): every sublayer reads a softmax over what the sublayers before it wrote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from resfx.methods.base import Place, factory_of
from resfx.methods.learned import empty, tensors_of
from resfx.methods.observe import Observations, attention_map
from resfx.methods.options import wrong
from resfx.ops.attention_read.formula import attention_read
from resfx.ops.attention_read.gained import gained_read
from resfx.ops.attention_read.two_phase import Ahead, inter_block, intra_block
from resfx.ops.scores import relative_softmax, rms_scales, rms_scores
from resfx.ops.weighted_sum.formula import weighted_sum

from .base import NOT_A_SUM, DepthMethod, DepthPlace, Read, in_blocks


@dataclass(frozen=True, kw_only=True)
class AttnRes(DepthMethod):
    """``h = sum_i a_i v_i`` with ``a = softmax_i(w . RMSNorm(v_i))`` before every sublayer and at the end (eq. 2-4).

    ``v_0`` is the embedding, ``v_i`` the output of sublayer ``i``; ``w`` is a parameter of each read, zero at first.
    With ``block=S`` the sources are the embedding, the sums of finished groups of ``S`` sublayers and the sum of the
    unfinished one (eq. 5-6); ``S = 1`` is the full form. The first sublayer has one source and no read.

    The zero query averages a partition of the stream, so a pre-norm host changes only by the factor ``1/n`` in front
    of its norms. ``start="preserve"`` reads ``x + sum_i (n a_i - 1) v_i`` instead: the same functions of a pre-norm
    host's norms without that factor, bit for bit the host at the start, and well defined where the stream is not the
    sum of the sources (post-norm hosts). The host's running sum stays in the graph for it.

    With ``normalized=True`` what is summed is normalised too, ``h = sum_i a_i u_i`` with ``u_i = RMSNorm(v_i)`` and
    ``a = softmax_i(w . u_i / sqrt(d))``, without a gain (the block read of Inkling 2 in transformers); the preserving
    start is then ``x + sum_i (n a_i - 1) u_i``.

    Attributes:
        block: sublayers in a block, or ``None`` for every output as a source of its own. Memory and time of full
            depth grow with the square of the depth: give a block from about 12 blocks on.
        eps: of the key norm (the paper names none).
        two_phase: the paper's schedule for blocks: finished blocks are read once for all reads inside the next block.
            The same function up to rounding; for training, where it moves less memory. In a graph for ONNX these reads
            are standard nodes, not one operator each.
        normalized: sum normalised sources, as above.
    """

    name: ClassVar[str] = "attnres"
    unit: ClassVar = "sublayer"
    carries: ClassVar = "outputs"
    parameters: ClassVar[str] = "2 d"
    crosses: ClassVar[str] = (
        "the embedding, what each sublayer wrote, the state; in blocks a sum for each and up to 3 more"
    )
    saved: ClassVar[str] = "d + 6 n + 2"

    block: int | None = None
    eps: float = 1e-6
    two_phase: bool = False
    normalized: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate(block=self.block, eps=self.eps)
        if self.two_phase and (self.block or 1) < 2:
            raise wrong(self, "block", "two_phase=True reads in blocks: block must be at least 2")

        if self.two_phase and self.normalized:
            raise wrong(self, "two_phase", "two_phase=True is the schedule of the paper's read, which sums sources as"
                        " they are", "normalized=False")  # fmt: skip

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        return in_blocks(read, self.block or 1) if read else None

    def targets(self, last: bool) -> tuple[str, ...]:
        return ("stream",) if last else ("input",)

    def ahead(self, read: int) -> int:
        return 1 + read // (self.block or 1) if self.two_phase else 0

    def refuse_stream(self, post_norm: bool) -> str | None:
        return NOT_A_SUM if post_norm and self.start == "published" else None

    def build(self, place: Place) -> nn.Module:
        assert isinstance(place, DepthPlace)
        return NormalizedRead(self, place) if self.normalized else AttnResRead(self, place)

    def build_ahead(self, place: Place) -> nn.Module:
        return InterBlock(self)


class AttnResRead(Read):
    """One read: a query and the gain of the key norm, ``2 d`` parameters."""

    def __init__(self, config: AttnRes, place: DepthPlace) -> None:
        super().__init__(config)
        self.eps = config.eps
        self.query, self.gain = (empty(place.width, **factory_of(place)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.query)
        nn.init.ones_(self.gain)

    def read(self, sources: list[Tensor], x: Tensor, ahead: Ahead | None = None) -> Tensor:
        base = x if self.preserve else None
        if ahead is None:
            query, gain = tensors_of(self, "query", "gain")
            done = gained_read(sources, query, gain, base, self.eps, self.preserve)
            if done is not None:
                return done
        query = self.query * self.gain
        if ahead is None:
            return attention_read(sources, query, base, eps=self.eps, relative=self.preserve)
        return intra_block(ahead, sources[0] if sources else None, query, base, self.eps).to(x.dtype)

    def observe(self, sources: list[Tensor], x: Tensor, ahead: Ahead | None = None) -> Observations:
        """``weights``, ``a``, and their entropy. With ``two_phase`` there are none: the sums over finished blocks that
        a read is handed no longer tell the blocks apart."""
        if ahead is not None:
            return {}
        return attention_map(rms_scores(sources, self.query * self.gain, self.eps).softmax(-1))


class NormalizedRead(Read):
    """One read of normalised sources: a query, ``d`` parameters."""

    def __init__(self, config: AttnRes, place: DepthPlace) -> None:
        super().__init__(config)
        self.eps = config.eps
        self.query = empty(place.width, **factory_of(place))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.query)

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor:
        logits = rms_scores(sources, self.query, self.eps) / math.sqrt(x.shape[-1])
        weights = relative_softmax(logits) - 1 if self.preserve else logits.softmax(-1)
        return weighted_sum(sources, weights * rms_scales(sources, self.eps), x if self.preserve else None)

    def observe(self, sources: list[Tensor], x: Tensor) -> Observations:
        """``weights``, of the normalised sources, and their entropy."""
        return attention_map((rms_scores(sources, self.query, self.eps) / math.sqrt(x.shape[-1])).softmax(-1))


class InterBlock(nn.Module):
    """Phase one for the reads inside a block. It has no parameters: queries and gains are the reads' own."""

    def __init__(self, config: AttnRes) -> None:
        super().__init__()
        self.config = config

    def forward(self, sources: list[Tensor], queries: list[tuple[Tensor, Tensor]]) -> list[Ahead]:
        relative = self.config.start == "preserve"
        return inter_block(sources, [q * gain for q, gain in queries], self.config.eps, relative)
