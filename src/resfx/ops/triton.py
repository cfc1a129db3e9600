"""What the launchers of all Triton kernels share. Imported by kernel modules alone."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .register import KERNEL_TYPES

WIDEST = 32768  # a row is one block
PROGRAMS = 1024  # that share the rows where a gradient is summed over them
MOST = 256  # tensors of one list


def row_fits(x: Tensor) -> bool:
    """Whether rows ``(..., d)`` are of a type and width that kernels take, and there are any."""
    return x.dtype in KERNEL_TYPES and 0 < x.shape[-1] <= WIDEST and x.numel() > 0


def rows_fit(sources: Sequence[Tensor], base: Tensor | None) -> bool:
    """Whether a list of rows and what they are added to have one shape, and the list one type."""
    first = sources[0]
    same = all(s.shape == first.shape and s.dtype == first.dtype for s in sources)
    based = base is None or (base.shape == first.shape and base.dtype in KERNEL_TYPES)
    return row_fits(first) and same and based and len(sources) <= MOST


def launch(width: int) -> dict[str, Any]:
    """Launch parameters of a program that holds a row of this width."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": 4 if block <= 2048 else 8 if block <= 8192 else 16}


def given(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """A tensor in one piece, or any other where there is none: the kernel does not read it then."""
    return instead if tensor is None else tensor.contiguous()


def where_it_lies(state: Tensor) -> Tensor:
    """A state as ``(rows, n, d)``, its channels side by side or the same memory, features next to each other."""
    rows = state.reshape(-1, *state.shape[-2:])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The device to launch on."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@triton.jit
def place_of(size, BLOCK: tl.constexpr):
    """Which sequence (a batch, a head of one) a program works on, and its first position; both on one axis of the grid,
    the only long one."""
    blocks = tl.cdiv(size, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BLOCK


@triton.jit
def _write(pointers, table, COUNT: tl.constexpr):
    for j in tl.static_range(COUNT):
        tl.store(table + j, pointers[j].to(tl.int64))


def in_one_piece(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, contiguous and beginning at multiples of 16 bytes."""
    pieces = (t.contiguous() for t in tensors)
    return [t if t.data_ptr() % 16 == 0 else t.clone() for t in pieces]


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """Where the tensors of :func:`in_one_piece` begin, as numbers written by their device: the host waits for nothing.

    With them one kernel loops over a list of any length. The caller keeps the tensors until it has launched that.
    """
    padded = triton.next_power_of_2(len(tensors))  # few kernels for all lengths
    table = torch.empty(padded, dtype=torch.int64, device=tensors[0].device)
    with on(table):
        _write[(1,)]((*tensors, *[tensors[0]] * (padded - len(tensors))), table, COUNT=padded, num_warps=1)
    return table


@triton.jit
def row_of(table, j, at, inside, like):
    """A row of the ``j``-th tensor of a table in float32; all have the type of ``like``."""
    start = tl.multiple_of(tl.load(table + j).to(like.dtype), 16)
    return tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
