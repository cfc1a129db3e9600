"""Where the time of a token goes: ``python -m benchmarks.account``.

``generate()`` of a decoder with random weights, plain and rewritten, with the C++ kernels; the forwards of its parts
are timed where they stand, in a cache that weights stream through, where Python takes two to three times what it takes
when a part is called again and again. Timing a part takes a few microseconds itself, which count as rest.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import perf_counter_ns, thread_time_ns
from typing import Any

import torch

import resfx
from resfx.export import build_kernels
from resfx.methods.delta_site import DeltaSite
from resfx.methods.depth.attn_res import AttnResRead
from resfx.methods.wide.base import Expand, Readout
from resfx.methods.wide.mhc import ManifoldRead, ManifoldWrite
from resfx.runtime.units import Unit

from .common import start, write
from .small import METHODS, decoder, kernels

TOKENS = 32
NAMES = ("ddl", "attnres, blocks of 8", "mhc")
PARTS = {"DeltaSite": DeltaSite, "AttnResRead": AttnResRead, "ManifoldRead": ManifoldRead,
         "ManifoldWrite": ManifoldWrite, "entry and exit": Expand, "entry and exit ": Readout}  # fmt: skip
"""New modules by the names they have in the table."""


class Account:
    """Microseconds by part: every timed call of one ``generate()`` after the other."""

    def __init__(self) -> None:
        self.spent: dict[str, list[int]] = defaultdict(list)

    def watch(self, cls: Any, method: str, part: str) -> None:
        """Time a method of a class from now on."""
        plain = getattr(cls, method)

        @functools.wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = perf_counter_ns()
            result = plain(*args, **kwargs)
            self.spent[part].append(perf_counter_ns() - begin)
            return result

        setattr(cls, method, timed)


def rows_of(name: str, spent: dict[str, dict[str, list[int]]], whole: dict[str, list[float]], runs: int) -> Any:
    """A row for each part: microseconds of a call, and of a token."""
    token = {who: median(whole[who]) for who in whole}
    rows, known = [], {"plain": 0.0, "rewritten": 0.0}
    for part in dict.fromkeys([*spent["plain"], *spent["rewritten"]]):
        row: dict[str, Any] = {"group": name, "part": part}
        for who in known:
            if calls := spent[who].get(part):
                row[who] = median(calls) / 1e3 * len(calls) / runs / TOKENS
                row["us a call"] = median(calls) / 1e3
                known[who] += row[who]
        rows.append({**row, "more": row.get("rewritten", 0.0) - row.get("plain", 0.0)})
    rest = {who: token[who] - known[who] for who in known}
    rows.append({"group": name, "part": "rest", **rest, "more": rest["rewritten"] - rest["plain"]})
    rows.append({"group": name, "part": "all", **token, "more": token["rewritten"] - token["plain"]})
    return rows


@torch.no_grad()
def account(library: Path, options: Any) -> list[dict[str, Any]]:
    """All methods beside the plain model; every kind of call is made before anything is timed."""
    from transformers.models.llama import modeling_llama as llama

    model, ids, rows = decoder(12, 256, 8), torch.randint(3, 500, (1, 16)), []
    run = lambda m: m.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    news = {name: resfx.rewrite(model, METHODS[name], args=(ids,), check=False) for name in NAMES}
    with kernels(library):
        for each in (model, *news.values()):
            run(each)
        book = Account()
        book.watch(llama.LlamaAttention, "forward", "attention")
        book.watch(llama.LlamaMLP, "forward", "MLP")
        book.watch(llama.LlamaRMSNorm, "forward", "norms")
        book.watch(Unit, "code_for", "finding the variant")
        for part, cls in PARTS.items():
            book.watch(cls, "forward", part.strip())
        for name, new in news.items():
            spent: dict[str, dict[str, list[int]]] = {"plain": defaultdict(list), "rewritten": defaultdict(list)}
            whole: dict[str, list[float]] = {"plain": [], "rewritten": []}
            for _ in range(options.rounds):
                for who, each in (("plain", model), ("rewritten", new)):
                    book.spent = spent[who]  # type: ignore[assignment]
                    begin = thread_time_ns()
                    run(each)
                    whole[who].append((thread_time_ns() - begin) / 1e3 / TOKENS)
            rows += rows_of(name, spent, whole, options.rounds)
            print(*rows[-6:], sep="\n", flush=True)
    return rows


def arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def main() -> None:
    options = start(__doc__ or "", arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = account(build_kernels(Path(folder) / "kernels.so"), options)
    head = (
        f"Where a token of `generate()` goes, {TOKENS} tokens of a Llama of 12 layers, d = 256, eager, with the C++"
        " kernels: microseconds a token of the plain and the rewritten model, by part, and a call's. Parts are timed"
        " where they stand, medians of wall time; `all` is CPU time, and `rest` what is left of it: the generated"
        " code, the host's own, and the clock itself."
    )
    write("account", rows, options, head, ("part", "plain", "rewritten", "more", "us a call"), clock="medians")


if __name__ == "__main__":
    main()
