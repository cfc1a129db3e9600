"""Other packages' kernels for the same operators, where they can be imported: Liger, fla, flash-attn-res.

Each takes the arguments of ``real``. Nothing of them is part of this repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def rivals(operator: str, args: Sequence[Any]) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Names and functions for an operator; a package that is not there, or is too old to have one, has none."""
    for label, make in KNOWN.get(operator, {}).items():
        try:
            yield label, make(args)
        except (ImportError, RuntimeError, OSError):  # also packages that look for a GPU, or a library, as they load
            continue


def _liger_read(args: Sequence[Any]) -> Callable[..., Tensor]:
    from liger_kernel.transformers.functional import liger_attn_res

    gain = torch.ones_like(args[1])
    return lambda sources, query, *_: liger_attn_res(torch.stack(sources).unsqueeze(1), query, gain, 1e-6)[0]


def _flash_read(args: Sequence[Any]) -> Callable[..., Tensor]:
    from flash_attn_res import phase_1_batched_attention_triton_op

    def call(sources: Sequence[Tensor], query: Tensor, *_: Any) -> Tensor:
        stacked = torch.stack(list(sources)).unsqueeze(1)
        return phase_1_batched_attention_triton_op(stacked, query.unsqueeze(0), 1e-6)[0][0, 0]

    return call


def _liger_mix(args: Sequence[Any]) -> Callable[..., Tensor]:
    from liger_kernel.transformers.functional import liger_mhc_post_res

    return lambda state, f, write, matrix, *_: liger_mhc_post_res(state, f, write, matrix)


def _liger_combine(args: Sequence[Any]) -> Callable[..., Tensor]:
    from liger_kernel.transformers.functional import liger_mhc_pre

    return lambda state, weights, *_: liger_mhc_pre(state, weights.squeeze(-1))


def _fla_convolution(args: Sequence[Any]) -> Callable[..., Tensor]:
    try:
        from fla.modules.causal_conv1d import causal_conv1d
    except ImportError:  # before 0.6
        from fla.modules.convolution import causal_conv1d

    return lambda x, weight, *_: causal_conv1d(x, weight)[0]


KNOWN: dict[str, dict[str, Callable[[Sequence[Any]], Callable[..., Tensor]]]] = {
    "attention_read": {"Liger, sources stacked": _liger_read, "flash-attn-res, sources stacked": _flash_read},
    "channels.mix": {"Liger": _liger_mix},
    "channels.combine": {"Liger": _liger_combine},
    "short_convolution": {"fla": _fla_convolution},
}
