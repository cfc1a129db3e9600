"""Every operator with kernels: the library's function, its formula, and the form a paper writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import plain
from resfx.ops.attention_read.formula import attention_read, attention_read_formula
from resfx.ops.channels import formula as channels
from resfx.ops.delta.formula import delta_formula, delta_shortcut
from resfx.ops.register import KERNEL_TYPES
from resfx.ops.short_convolution.formula import short_convolution, short_convolution_formula
from resfx.ops.sinkhorn.formula import sinkhorn, sinkhorn_formula
from resfx.ops.weighted_sum.formula import weighted_sum, weighted_sum_formula
from resfx.ops.window.formula import windowed_attention, windowed_attention_formula

from .cases import ODD


@dataclass(frozen=True)
class Operator:
    """What the checks and the tables need to know of an operator.

    Attributes:
        name: as :mod:`resfx.ops.choice` has it.
        title: in the tables.
        public: the library's function, of positional arguments.
        formula: what it is held against.
        paper: the same in plain torch as a paper or a first version has it, of the arguments of ``real``.
        module: of its kernels.
        types: that the kernels take.
        node: part of the name of the gradient function of a result.
    """

    name: str
    title: str
    public: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    paper: Callable[..., Tensor]
    module: str
    types: tuple[torch.dtype, ...] = KERNEL_TYPES
    node: str = "GeneratedBackwardFor_resfx"


def _delta(x: Tensor, f: Tensor, b: Tensor, v: Tensor, mix: Any, total: Any, eps2: float, add: bool) -> Tensor:
    return delta_shortcut(x, f, b, v, mix, total, eps2=eps2, add=add)


def _read(sources: Any, query: Tensor, base: Any, gate: Any, eps: float, relative: bool) -> Tensor:
    return attention_read(sources, query, base, gate, eps=eps, relative=relative)


def _window(q: Tensor, k: Tensor, v: Tensor, mask: Any, size: int, causal: bool, chunk: bool, scale: float) -> Tensor:
    return windowed_attention(q, k, v, size, causal=causal, chunk=chunk, mask=mask, scale=scale)


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _limit(logits: Tensor, iterations: int, newton: int) -> Tensor:
    """The rounds, or what many of them come to."""
    return sinkhorn_formula(logits, 300 if newton else iterations, 0)


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("delta", "Delta shortcut", _delta, delta_formula,
                 lambda x, f, b, v, m, *_: plain.delta(x, f, b, v, m).to(x.dtype), "delta.triton"),
        Operator("attention_read", "Read over depth", _read, attention_read_formula,
                 lambda s, q, *_: plain.stacked_read(s, q), "attention_read.triton"),
        Operator("channels.mix", "Channels mixed and written", channels.mix, channels.mix_formula,
                 lambda x, f, w, m, *_: plain.mixed(x.float(), f.float(), w, m).to(x.dtype), "channels.triton_mix"),
        Operator("weighted_sum", "Weighted sum over depth", weighted_sum, weighted_sum_formula,
                 lambda s, w, *_: plain.stacked_sum(s, w), "weighted_sum.triton"),
        Operator("window", "Short window (against full causal attention)", _window, windowed_attention_formula,
                 _attention, "window.triton"),
        Operator("short_convolution", "Short convolution", short_convolution, short_convolution_formula,
                 lambda x, w, *_: plain.depthwise(x, w), "short_convolution.triton"),
        Operator("channels.delta", "Wide delta shortcut", channels.delta_write, channels.delta_write_formula,
                 lambda x, f, b, v, m, *_: plain.wide_delta(x.float(), f.float(), b, v, m).to(x.dtype),
                 "channels.triton_delta"),
        Operator("channels.combine", "Channels combined", channels.combine, channels.combine_formula,
                 lambda x, w, *_: plain.combined(x.float(), w.squeeze(-1)).to(x.dtype), "channels.triton_combine"),
        Operator("sinkhorn", "Sinkhorn, 20 rounds", sinkhorn, _limit, lambda x, *_: plain.sinkhorn_rounds(x),
                 "sinkhorn.triton", (torch.float32,), "_SinkhornBackward"),
    )
}  # fmt: skip
"""In the order in which they are measured."""

assert set(OPERATORS) == set(ODD)
