"""What all depth methods share: the config's questions, the module's call, and sums over a list of sources.

Every method of this family is learned aggregation over the ordered depth axis (arXiv 2603.16039, section 2.3):
it chooses sources, weighs them, and says where the result goes. Sources are lists, never one stacked tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resfx._torch import is_exporting, transforming
from resfx.methods.base import Method, Place
from resfx.ops.attention_read.grouped import grouped_read
from resfx.ops.chunks import chunked_sums, cut, is_cut, run_chunk, with_chunks
from resfx.ops.register import accumulator, fused


@dataclass(frozen=True, kw_only=True)
class DepthPlace(Place):
    """What a depth method may know of one of its reads.

    Attributes:
        read: number of the read: how many sublayers or blocks lie before it.
        sources: how many sources it is handed.
        last: whether it stands after the last sublayer, before the readers of the stream's end.
        outputs: how many tensors it returns.
        sublayers: how many the unit behind the read has; parallel ones count once.
    """

    read: int
    sources: int
    last: bool
    outputs: int
    sublayers: int = 1


@dataclass(frozen=True, kw_only=True)
class DepthMethod(Method):
    """Base of the depth methods. The module built for a read is called as ``forward(sources, x)``.

    ``sources`` are tensors ``(..., d)`` in depth order, ``x (..., d)`` is what the host reads there. The result
    replaces ``x`` for the readers that :meth:`targets` names: one tensor for each.

    With ``start="preserve"`` a read is ``x + correction`` with a correction of exactly zero at the start, so it keeps
    every bit in any type, on pre-norm and post-norm hosts alike.

    Attributes:
        recompute: run the read again in the backward pass and keep only what it was given, none of what lies between.
    """

    scope: ClassVar[str] = "depth"
    unit: ClassVar[Literal["sublayer", "block"]] = "block"
    carries: ClassVar[Literal["outputs", "states"]] = "states"

    recompute: bool = False

    def sources(self, read: int, last: bool) -> list[tuple[int, ...]] | None:
        """The sources of a read, or ``None`` for no read there.

        Each is a group of numbers, added up. Where the method carries ``"states"``, number ``j`` is the stream
        before unit ``j``; where it carries ``"outputs"``, 0 is the start of the stream and ``j`` what unit ``j - 1``
        added. ``read`` is the newest number there is.
        """
        raise NotImplementedError

    def ahead(self, read: int) -> int:
        """How many of a read's first sources are taken in once for all reads that have them too; 0 for none.

        What :meth:`build_ahead` makes is then called with these sources and, for each of the reads, the parameters of
        its module, and returns a list with what each read is handed for them.
        """
        return 0

    def build_ahead(self, place: Place) -> nn.Module:
        """The module for sources that are taken in ahead: ``forward(sources, [parameters of a read, ...])``."""
        raise NotImplementedError

    def targets(self, last: bool) -> tuple[str, ...]:
        """Who reads the result: ``"stream"`` (shortcut and all), ``"input"`` (the branch) and ``"shortcut"``, or
        ``"q"``, ``"k"``, ``"v"`` (the attention's projections) and ``"r"`` (every other reader, the shortcut too);
        ``"qr"`` is both."""
        return ("stream",)

    def refuse_stream(self, post_norm: bool) -> str | None:
        """Why the method cannot act on a stream; ``None`` where it can."""
        return None

    def build_source(self, place: Place) -> nn.Module | None:
        """A module applied once to every source of a stream, shared by all its reads."""
        return None

    def validate(self, **positive: int | float | None) -> None:
        """Raise ``ValueError`` for a named option that is given and not positive."""
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")


NOT_A_SUM = (
    "the published form needs a stream that is the sum of its sources; a post-norm stream is normalised after every add"
)


class Read(nn.Module):
    """Base of the modules: subclasses define ``read(sources, x)``, or ``read(sources, x, ahead)``."""

    def __init__(self, config: DepthMethod) -> None:
        super().__init__()
        self.config = config
        self.preserve = config.start == "preserve"

    def forward(
        self, sources: list[Tensor], x: Tensor, *ahead: Any, recomputed: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        given = (sources, x, *ahead)
        if recomputed or not self.config.recompute or not torch.is_grad_enabled() or is_exporting():
            return self.read(*given)
        # Parameters are passed, not looked up again: a recomputation may run outside the call that swapped them.
        parameters = dict(self.named_parameters())
        call = with_chunks(lambda p, *args: torch.func.functional_call(self, p, args, {"recomputed": True}))
        return checkpoint(call, parameters, *given, use_reentrant=False, preserve_rng_state=False)

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The method's equation."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"start={self.config.start}"


def weighted_sum(sources: Sequence[Tensor], weights: Tensor, base: Tensor | None = None) -> Tensor:
    """``base + sum_j weights[..., j] sources[j]``, accumulated in float32 for half types.

    Args:
        sources: ``n`` tensors ``(..., d)``.
        weights: ``(n,)``, or ``(..., n)`` for weights of each token's own.
        base: ``(..., d)``; kept bit for bit where every weight is zero.
    """
    return _weighted_sum(list(sources), weights, base)


def weighted_sums(sources: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """:func:`weighted_sum` for weights ``(m, n)`` or ``(..., m, n)``: ``m`` tensors."""
    if is_cut(sources):
        totals = chunked_sums(sources, weights.to(accumulator(sources[0].dtype)), None)
        return [total.to(sources[0].dtype) for total in totals]
    return [weighted_sum(sources, row) for row in weights.unbind(-2)]


def weighted_sum_formula(sources: Sequence[Tensor], weights: Tensor, base: Tensor | None) -> Tensor:
    """:func:`weighted_sum` step by step."""
    dtype = sources[0].dtype if base is None else base.dtype
    wide = accumulator(dtype)
    weights = weights.to(wide)
    if is_cut(sources):
        return chunked_sums(sources, weights.unsqueeze(-2), base)[0].to(dtype)
    total = weights[..., 0, None] * sources[0].to(wide)
    for j in range(1, len(sources)):
        total = total + weights[..., j, None] * sources[j].to(wide)
    total = total.to(dtype)
    return total if base is None else base + total


def rms_scores(sources: Sequence[Tensor], query: Tensor, eps: float) -> Tensor:
    """``query . RMSNorm(source_j)`` as ``(..., n)``, in float32 for half types: a product and a scale per source."""
    if is_cut(sources):
        return torch.cat([run_chunk(rms_scores, sources[part], query, eps) for part in cut(len(sources))], -1)
    wide = accumulator(sources[0].dtype)
    query = query.to(wide)
    return torch.stack([(s.to(wide) * query).sum(-1) * _inverse_rms(s.to(wide), eps) for s in sources], -1)


def rms_scales(sources: Sequence[Tensor], eps: float) -> Tensor:
    """``1 / rms(source_j)`` as ``(..., n)``, float32 for half types: weights times these weigh normalised sources."""
    if is_cut(sources):
        return torch.cat([run_chunk(rms_scales, sources[part], eps) for part in cut(len(sources))], -1)
    return torch.stack([_inverse_rms(s.to(accumulator(s.dtype)), eps) for s in sources], -1)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt((x * x).mean(-1) + eps)


def attention_read(
    sources: Sequence[Tensor],
    query: Tensor,
    base: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    eps: float,
    relative: bool = False,
) -> Tensor:
    """``base + gate sum_j a_j sources[j]`` with ``a = softmax_j(query . RMSNorm(source_j))`` (AttnRes, eq. 2-4).

    Args:
        sources: ``n`` tensors ``(..., d)``.
        query: ``(d,)``, with the gain of the norm.
        base: ``(..., d)``; kept bit for bit where all weights are zero.
        gate: ``()``.
        eps: of the norm.
        relative: weigh with ``n a_j - 1`` instead: zero where all scores are equal.

    Returns:
        ``(..., d)`` in the type of the base, or of the sources; float32 inside for half types.
    """
    return _attention_read(list(sources), query, base, gate, eps, relative)


def attention_read_formula(
    sources: Sequence[Tensor], query: Tensor, base: Tensor | None, gate: Tensor | None, eps: float, relative: bool
) -> Tensor:
    """:func:`attention_read` step by step."""
    logits = rms_scores(sources, query, eps)
    weights = relative_softmax(logits) - 1 if relative else logits.softmax(-1)
    return weighted_sum_formula(sources, weights if gate is None else weights * gate, base)


def _open_read(
    sources: Sequence[Tensor], query: Tensor, base: Tensor | None, gate: Tensor | None, eps: float, relative: bool
) -> Tensor:
    """:func:`attention_read` in plain torch: compiled with gradients in closed form, many sources in groups."""
    compiling = torch.compiler.is_dynamo_compiling() and not is_exporting() and not transforming()
    if (compiling or is_cut(sources)) and _alike(sources, base):
        read = grouped_read(sources, query, eps, relative)
        if gate is not None:
            wide = accumulator(read.dtype)
            read = (read.to(wide) * gate.to(wide)).to(read.dtype)
        return read if base is None else base + read
    return attention_read_formula(sources, query, base, gate, eps, relative)


def _alike(sources: Sequence[Tensor], base: Tensor | None) -> bool:
    """Whether all have one shape and type, and no source comes twice."""
    first, *others = sources if base is None else (*sources, base)
    twice = any(a is b for i, a in enumerate(sources) for b in sources[:i])
    return not twice and all(s.shape == first.shape and s.dtype == first.dtype for s in others)


def relative_softmax(logits: Tensor) -> Tensor:
    """``n softmax(logits)``: exactly 1 everywhere where all ``n`` logits are equal, for every ``n``."""
    e = torch.exp(logits - logits.amax(-1, keepdim=True))
    return e * logits.shape[-1] / e.sum(-1, keepdim=True)  # not n / sum: a number over a tensor is a reciprocal


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """``x / rms(x)`` without gain, in float32 for half types."""
    x = x.to(accumulator(x.dtype))
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)


def in_blocks(read: int, size: int, partial: bool = True) -> list[tuple[int, ...]]:
    """The start, then outputs ``1..read`` in groups of ``size``; the last group may be unfinished."""
    groups = [tuple(range(i, min(i + size, read + 1))) for i in range(1, read + 1, size)]
    return [(0,), *(g for g in groups if partial or len(g) == size)]


_weighted_sum = fused("weighted_sum", weighted_sum_formula, node=True)
_attention_read = fused("attention_read", attention_read_formula, open_form=_open_read, node=True)
