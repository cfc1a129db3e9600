"""Single operators against named baselines and the memory floor: ``python -m benchmarks.operators``.

Delta shortcut against ``torch.add``, reads over depth against the stacked form, short windows against full causal
attention, short convolutions against ``conv1d``. Eager and compiled, forward and with all gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resfx.ops._depth import relative_softmax, rms_scores, weighted_sum
from resfx.ops._local_conv import LocalConv
from resfx.ops.delta import delta_formula, delta_shortcut
from resfx.ops.window import windowed_attention

from .common import Case, compiled, group, start, steps, write

MODES = ("forward", "training")
Rows = Iterator[dict[str, Any]]


def cases(named: dict[str, Callable[..., Tensor]], inputs: list[Tensor], mode: str) -> list[Case]:
    """A case of each function; names that end in ``compiled`` are compiled."""
    make = lambda n, f: compiled(f) if n.endswith("compiled") else f
    return [Case(n, steps(make(n, f), inputs, mode)) for n, f in named.items()]


def delta(options: Any) -> Rows:
    """The delta shortcut with a closed-over mix; floor: x, f in, y out; with gradients also g, x, f in, two out."""
    shapes = [(4096, 768), (4096, 2048)] if options.full else [(4096, 768), (2048, 2048)]
    for dtype in (torch.float32, torch.bfloat16):
        for rows, d in shapes:
            for mode in MODES:
                x, f = (torch.randn(rows, d, dtype=dtype, device=options.device) for _ in range(2))
                beta, v = (torch.rand(rows, 1, device=options.device) for _ in range(2))
                mix = torch.tensor(0.3, dtype=dtype, device=options.device)
                formula = lambda x, f, b, v, m: delta_formula(x, f, b, v, m, None, 1e-10, True)
                library = lambda x, f, b, v, m: delta_shortcut(x, f, b, v, m)
                out = torch.empty_like(x)
                add = Case("torch.add(out=)", functools.partial(torch.add, x, f, out=out))
                rest = cases({"formula, eager": formula, "library, eager": library, "formula, compiled": formula,
                              "library, compiled": library}, [x, f, beta, v, mix], mode)  # fmt: skip
                tensors = 3 if mode == "forward" else 8
                yield from group("Delta shortcut", [add, *rest], "torch.add(out=)", tensors * x.nbytes, options,
                                 shape=[rows, d], dtype=str(dtype)[6:], mode=mode)  # fmt: skip


def depth(options: Any) -> Rows:
    """A read over K sources; floor: K in, one out; with gradients also g and K in, K out (3 K + 2)."""

    def stacked(query: Tensor, *sources: Tensor) -> Tensor:
        values = torch.stack(sources)
        weights = torch.einsum("d,n...d->n...", query, F.rms_norm(values, values.shape[-1:], eps=1e-6)).softmax(0)
        return torch.einsum("n...,n...d->...d", weights, values)

    def published(query: Tensor, *sources: Tensor) -> Tensor:
        return weighted_sum(sources, rms_scores(sources, query, 1e-6).softmax(-1))

    def preserving(query: Tensor, *sources: Tensor) -> Tensor:
        return weighted_sum(sources, relative_softmax(rms_scores(sources, query, 1e-6)) - 1, sources[-1])

    rows, d = 2048, 768
    for count in (4, 12) if options.full else (4,):
        for mode in MODES:
            query = torch.randn(d, device=options.device)
            sources = [torch.randn(rows, d, device=options.device) for _ in range(count)]
            named = {"stack, norm, einsum, eager": stacked, "list, eager": published,
                     "stack, norm, einsum, compiled": stacked, "list, compiled": published,
                     "list, preserving, compiled": preserving}  # fmt: skip
            tensors = count + 1 if mode == "forward" else 3 * count + 2
            yield from group("Read over depth", cases(named, [query, *sources], mode), "stack, norm, einsum, eager",
                             tensors * sources[0].nbytes, options, shape=[count, rows, d], dtype="float32",
                             mode=mode)  # fmt: skip


def windows(options: Any) -> Rows:
    """Attention over the last w positions; floor: q, k, v in, one out; with gradients also g, q, k, v in, three out."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    heads, dim = 8, 64
    for size in (2048, 8192) if options.full else (2048,):
        for window in (4, 16):
            for mode in MODES:
                inputs = [torch.randn(1, heads, size, dim, device=options.device) for _ in range(3)]
                band = lambda b, h, i, j, w=window: (i >= j) & (i - j < w)
                mask = create_block_mask(band, None, None, size, size, device=options.device)
                library = lambda q, k, v, w=window: windowed_attention(q, k, v, w)
                taps = torch.randn(4, heads * dim, device=options.device)
                named = {
                    "SDPA, full causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                    "flex_attention, compiled": lambda q, k, v, m=mask: flex_attention(q, k, v, block_mask=m),
                    "library, eager": library,
                    "library, compiled": library,
                }
                rows = cases(named, inputs, mode)
                conv = lambda x, t=taps: sum(F.pad(x, (0, 0, 3 - s, 0))[:, : x.shape[1]] * t[s] for s in range(4))
                flat = torch.randn(1, size, heads * dim, device=options.device)
                rows.append(Case("short convolution of 4 taps, compiled", steps(compiled(conv), [flat], mode)))
                tensors = 4 if mode == "forward" else 11
                yield from group("Short window", rows, "SDPA, full causal", tensors * inputs[0].nbytes, options,
                                 shape=[1, heads, size, dim], window=window, dtype="float32", mode=mode)  # fmt: skip


def convolutions(options: Any) -> Rows:
    """A causal depthwise convolution of 4 taps; floor: one in, one out; with gradients also g and x in, one out."""
    batch, size, width = 4, 1024, 768
    factory = {"device": torch.device(options.device), "dtype": torch.float32}
    layer = LocalConv(width, 4, bias=False, activation="none", residual=False, causal=True, identity=False,
                      factory=factory)  # fmt: skip

    def library(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    def conv1d(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight.unsqueeze(1), groups=width).transpose(1, 2)

    for mode in MODES:
        x = torch.randn(batch, size, width, device=options.device)
        named = {"conv1d, depthwise": conv1d, "library, eager": library, "library, compiled": library}
        tensors = 2 if mode == "forward" else 5
        rows = cases(named, [x, layer.weight.detach()], mode)
        yield from group("Short convolution", rows, "conv1d, depthwise", tensors * x.nbytes, options,
                         shape=[batch, size, width], dtype="float32", mode=mode)  # fmt: skip


GROUPS = {"delta": delta, "depth": depth, "windows": windows, "convolutions": convolutions}


def main() -> None:
    """Measure the groups asked for and write the results."""
    options = start(__doc__ or "", lambda p: p.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS)))
    rows = [row for name in options.only for row in GROUPS[name](options)]
    head = (
        "`ratio` is to the group's baseline (for the delta shortcut one `torch.add` into a given tensor in both modes);"
        " `to_floor` is to the time of moving the bytes that must be moved at the copy bandwidth measured in the same"
        " rounds: that of the group's operator, for every case; below 1 where tensors stay in the cache. "
        "`training` is the forward pass and the gradients of every input. `first_call_s` contains compilation;"
        " a kernel found in the compiler's cache on disk makes it short."
    )
    columns = (
        "shape",
        "dtype",
        "window",
        "mode",
        "case",
        "ratio",
        "to_floor",
        "median_ms",
        "quartiles_ms",
        "first_call_s",
    )
    write("operators", rows, options, head, columns)


if __name__ == "__main__":
    main()
