"""Single operators against named baselines and the memory floor: ``python -m benchmarks.operators``.

Delta shortcut against ``torch.add``, reads over depth against the stacked form, short windows against full causal
attention, short convolutions against ``conv1d``; more in :mod:`benchmarks.mixes`. Eager and compiled, forward and with
all gradients.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resfx.methods.base import Place
from resfx.methods.sequence.local_conv import LocalConv
from resfx.methods.site.ddl import DDL
from resfx.ops.attention_read.formula import attention_read, attention_read_formula
from resfx.ops.delta.formula import delta_formula, delta_shortcut
from resfx.ops.window.formula import windowed_attention

from . import authors, mixes, plain
from .common import MODES, Case, cases, compiled, group, start, steps, write

Rows = Iterator[dict[str, Any]]


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


def site(options: Any) -> Rows:
    """A whole residual site of DDL, gates and the norm behind it included; floor: x, f, c in, sum and norm out."""
    rows, theirs = options.rows, authors.find(options.authors)
    for dtype in (torch.float32, torch.bfloat16):
        for d in (768, 2048):
            place = Place(width=d, context_width=d, kind="mlp", depth=0, dtype=dtype,
                          device=torch.device(options.device))  # fmt: skip
            shortcut = DDL().build(place)
            torch.nn.init.constant_(shortcut.get_parameter("mix"), 0.3)
            released = DDL.repository(start="published").build(place).requires_grad_(False)
            shortcut.requires_grad_(False)

            def add(x: Tensor, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
                y = x + f
                return y, F.rms_norm(y, y.shape[-1:], eps=1e-6)

            def ddl(x: Tensor, f: Tensor, c: Tensor, shortcut: Any = shortcut) -> tuple[Tensor, Tensor]:
                y = shortcut(x, f, c)
                return y, F.rms_norm(y, y.shape[-1:], eps=1e-6)

            def repository(x: Tensor, f: Tensor, c: Tensor, shortcut: Any = released) -> tuple[Tensor, Tensor]:
                y = shortcut(x, f, c)
                return y, F.rms_norm(y, y.shape[-1:], eps=1e-6)

            inputs = [torch.randn(rows, d, dtype=dtype, device=options.device) for _ in range(3)]
            named = {"add and RMSNorm, compiled": add, "DDL site and RMSNorm, eager": ddl,
                     "DDL site and RMSNorm, compiled": ddl,
                     "DDL.repository() site and RMSNorm, compiled": repository}  # fmt: skip
            if "delta" in theirs:
                theirs_site = authors.delta(theirs["delta"], d, dtype, options.device)

                def published(x: Tensor, f: Tensor, c: Tensor, site: Any = theirs_site) -> tuple[Tensor, Tensor]:
                    y = site(x, k_in=f, context=c)
                    return y, F.rms_norm(y, y.shape[-1:], eps=1e-6)

                named |= {"the authors' residual and RMSNorm, eager": published,
                          "the authors' residual and RMSNorm, compiled": published}  # fmt: skip
            yield from group("Residual site", cases(named, inputs, "forward"), "add and RMSNorm, compiled",
                             5 * inputs[0].nbytes, options, shape=[rows, d], dtype=str(dtype)[6:],
                             mode="forward")  # fmt: skip


def depth(options: Any) -> Rows:
    """A read over K sources; floor: K in, one out; with gradients also g and K in, K out (3 K + 2).

    The preserving read has one tensor more to read, and the floor of the published one all the same.
    """

    def stacked(query: Tensor, x: Tensor, *sources: Tensor) -> Tensor:
        return plain.stacked_read(sources, query)

    def formula(query: Tensor, x: Tensor, *sources: Tensor) -> Tensor:
        return attention_read_formula(sources, query, None, None, 1e-6, False)

    def published(query: Tensor, x: Tensor, *sources: Tensor) -> Tensor:
        return attention_read(sources, query, eps=1e-6)

    def preserving(query: Tensor, x: Tensor, *sources: Tensor) -> Tensor:
        return attention_read(sources, query, x, eps=1e-6, relative=True)

    def normed(query: Tensor, x: Tensor, *sources: Tensor) -> Tensor:
        return F.rms_norm(published(query, x, *sources), x.shape[-1:], eps=1e-6)

    rows, d = 2048, 768
    theirs = authors.find(options.authors)
    for count in options.sources:
        for mode in MODES:
            query = torch.randn(d, device=options.device)
            sources = [torch.randn(rows, d, device=options.device) for _ in range(count + 1)]
            named = {"stack, norm, einsum, eager": stacked, "list, eager": published,
                     "stack, norm, einsum, compiled": stacked, "list in one loop, compiled": formula,
                     "list, compiled": published, "list, preserving, compiled": preserving}  # fmt: skip
            if mode == "forward":
                named["list and the norm behind it, compiled"] = normed
            if "read" in theirs:
                named["the authors' code, eager"] = authors.read(theirs["read"], d, options.device)
            tensors = count + 1 if mode == "forward" else 3 * count + 2
            yield from group("Read over depth", cases(named, [query, *sources], mode), "stack, norm, einsum, eager",
                             tensors * sources[0].nbytes, options, shape=[count, rows, d], dtype="float32",
                             mode=mode)  # fmt: skip


def windows(options: Any) -> Rows:
    """Attention over the last w positions; floor: q, k, v in, one out; with gradients also g, q, k, v in, three out."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    heads, dim = 8, 64
    for size in (2048, 8192):
        for window in (4, 16):
            for mode in MODES:
                inputs = [torch.randn(1, heads, size, dim, device=options.device) for _ in range(3)]
                band = lambda b, h, i, j, w=window: (i >= j) & (i - j < w)
                mask = create_block_mask(band, None, None, size, size, device=options.device)
                library = lambda q, k, v, w=window: windowed_attention(q, k, v, w)
                taps = torch.randn(4, heads * dim, device=options.device)
                named: dict[str, Callable[..., Any]] = {
                    "SDPA, full causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                    "flex_attention, compiled": functools.partial(flex_attention, block_mask=mask),
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

    for mode in MODES:
        x = torch.randn(batch, size, width, device=options.device)
        named = {"conv1d, depthwise": plain.depthwise, "library, eager": library, "library, compiled": library}
        tensors = 2 if mode == "forward" else 5
        rows = cases(named, [x, layer.weight.detach()], mode)
        yield from group("Short convolution", rows, "conv1d, depthwise", tensors * x.nbytes, options,
                         shape=[batch, size, width], dtype="float32", mode=mode)  # fmt: skip


GROUPS = {"delta": delta, "site": site, "depth": depth, "sums": mixes.sums, "wide": mixes.wide, "windows": windows,
          "convolutions": convolutions}  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark can be asked beside what all can."""
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="groups (default all)")
    parser.add_argument("--sources", type=int, nargs="+", default=[4, 12, 24], help="of a read (default 4 12 24)")
    parser.add_argument("--rows", type=int, default=2048, help="of a whole site (default 2048)")
    parser.add_argument("--authors", nargs="+", default=[], metavar="FOLDER",
                        help="checked-out repositories of papers' authors to compare with")  # fmt: skip


def main() -> None:
    """Measure the groups asked for and write the results."""
    options = start(__doc__ or "", arguments)
    head = (
        "`ratio` is to the group's baseline (for the delta shortcut one `torch.add` into a given tensor in both modes);"
        " `to_floor` is to the time of moving the bytes that must be moved at the copy bandwidth measured in the same"
        " rounds: that of the group's operator, for every case; below 1 where tensors stay in the cache. "
        "`training` is the forward pass and the gradients of every input. `peak_MiB` is what one call allocates at its"
        " highest. `first_call_s` contains compilation;"
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
        "peak_MiB",
        "median_ms",
        "quartiles_ms",
        "first_call_s",
    )
    name = "operators" if set(options.only) == set(GROUPS) else "-".join(["operators", *options.only])
    rows: list[dict[str, Any]] = []
    for kind in options.only:
        for row in GROUPS[kind](options):
            rows.append(row)
            write(name, rows, options, head, columns, quiet=True)  # a run that is cut short keeps what it measured
    print(f"wrote results/{name}.md and results/data/{name}.json", file=sys.stderr)


if __name__ == "__main__":
    main()
