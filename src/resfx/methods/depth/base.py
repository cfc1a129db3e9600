"""What all depth methods share: the config's questions, the module's call, and which sources make a group.

Every method of this family is learned aggregation over the ordered depth axis (arXiv 2603.16039, section 2.3):
it chooses sources, weighs them, and says where the result goes. Sources are lists, never one stacked tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resfx._torch import is_exporting
from resfx.methods.base import Method, Place
from resfx.methods.learned import Learned
from resfx.methods.options import wrong
from resfx.ops.chunks import with_chunks


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
        """Why the method cannot act on a stream; ``None`` where it can.

        ``post_norm``: a norm or an activation follows every add, so that the stream is not the sum of what was added.
        """
        return None

    def build_source(self, place: Place) -> nn.Module | None:
        """A module applied once to every source of a stream, shared by all its reads."""
        return None

    def validate(self, **positive: int | float | None) -> None:
        """Raise ``OptionError`` for a named option that is given and not positive."""
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise wrong(self, name, f"{name} must be positive")


NOT_A_SUM = (
    "the published form needs a stream that is the sum of its sources, and here a norm or an activation follows every"
    " add"
)


class Read(Learned):
    """Base of the modules: subclasses define ``read(sources, x)``, or ``read(sources, x, ahead)``, and where they own
    parameters ``reset_parameters()``."""

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

    def reset_parameters(self) -> None:
        """Nothing to start where there are no parameters."""

    def read(self, sources: list[Tensor], x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The method's equation."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"start={self.config.start}"


def in_blocks(read: int, size: int, partial: bool = True) -> list[tuple[int, ...]]:
    """The start, then outputs ``1..read`` in groups of ``size``; the last group may be unfinished."""
    groups = [tuple(range(i, min(i + size, read + 1))) for i in range(1, read + 1, size)]
    return [(0,), *(g for g in groups if partial or len(g) == size)]
