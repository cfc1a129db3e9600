"""Single operators, continued: weighted sums over depth, and what is done to the channels of a widened stream.

Baselines are the equations written with ``torch.einsum`` and the like, as the papers' code has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from resfx.ops.channels import formula as channels
from resfx.ops.sinkhorn.formula import sinkhorn
from resfx.ops.weighted_sum.formula import weighted_sum

from . import plain
from .common import MODES, cases, group


def sums(options: Any) -> Iterator[dict[str, Any]]:
    """The mix of DenseFormer over K sources; floor: K in, one out; with gradients also g and K in, K out."""

    def stacked(weights: Tensor, *sources: Tensor) -> Tensor:
        return plain.stacked_sum(sources, weights)

    def library(weights: Tensor, *sources: Tensor) -> Tensor:
        return weighted_sum(sources, weights)

    rows, d = 2048, 768
    for count in options.sources:
        for mode in MODES:
            inputs = [torch.randn(count), *(torch.randn(rows, d) for _ in range(count))]
            named = {"stack, einsum, eager": stacked, "list, eager": library, "stack, einsum, compiled": stacked,
                     "list, compiled": library}  # fmt: skip
            tensors = count + 1 if mode == "forward" else 3 * count + 2
            given = [x.to(options.device) for x in inputs]
            yield from group("Weighted sum over depth", cases(named, given, mode), "stack, einsum, eager",
                             tensors * given[1].nbytes, options, shape=[count, rows, d], dtype="float32",
                             mode=mode)  # fmt: skip


def wide(options: Any) -> Iterator[dict[str, Any]]:
    """Reads and writes of a state of n channels, in rows of d. Floors: a read takes n and gives one, a write takes
    n + 1 and gives n; gradients take the same and the result's, and give what was taken."""
    rows, n, d = 2048, 4, 768
    draw = lambda *shape: torch.randn(*shape, device=options.device)
    state, f, read, write = draw(rows, n, d), draw(rows, d), draw(rows, n).softmax(-1), draw(rows, n)
    matrix, beta, mix = draw(rows, n, n).softmax(-1), draw(rows, 1).sigmoid(), draw(()).sigmoid()

    forms: dict[str, tuple[Any, Any, list[Tensor], bool]] = {
        "Channels combined": (
            plain.combined, lambda x, w: channels.combine(x, w.unsqueeze(-1)), [state, read], False,
        ),
        "Channels mixed and written": (
            plain.mixed, lambda x, f, w, m: channels.mix(x, f, w, m, False), [state, f, write, matrix], True,
        ),
        "Wide delta shortcut": (
            plain.wide_delta, lambda x, f, b, v, m: channels.delta_write(x, f, b, v, m, 1e-10, True, True),
            [state, f, beta, write, mix], True,
        ),
    }  # fmt: skip
    for title, (einsum, library, inputs, writes) in forms.items():
        for mode in MODES:
            named = {"einsum, eager": einsum, "library, eager": library, "einsum, compiled": einsum,
                     "library, compiled": library}  # fmt: skip
            moved = 2 * n + 1 if writes else n + 1
            if mode == "training":
                moved += 3 * n + 2 if writes else 2 * n + 1
            yield from group(title, cases(named, inputs, mode), "einsum, eager", moved * f.nbytes, options,
                             shape=[rows, n, d], dtype="float32", mode=mode)  # fmt: skip
    yield from _projection(draw(rows, n, n), options)


def _projection(logits: Tensor, options: Any) -> Iterator[dict[str, Any]]:
    """Sinkhorn's projection; it is bound by arithmetic, and the floor of its bytes is far."""

    for mode, tensors in zip(MODES, (2, 5), strict=True):
        library, newton = lambda x: sinkhorn(x, 20), lambda x: sinkhorn(x, 20, 8)
        named = {"20 rounds, eager": plain.sinkhorn_rounds, "20 rounds, compiled": plain.sinkhorn_rounds,
                 "library, 20 rounds, eager": library, "library, 20 rounds, compiled": library,
                 "library, Newton's too, eager": newton, "library, Newton's too, compiled": newton}  # fmt: skip
        yield from group("Sinkhorn", cases(named, [logits], mode), "20 rounds, eager", tensors * logits.nbytes, options,
                         shape=list(logits.shape), dtype="float32", mode=mode)  # fmt: skip
