"""Whole models before and after a rewrite: ``python -m benchmarks.models``.

A decoder with random weights, each method at its preserving start: forward and training step, eager, compiled block by
block or as one graph (``--backends eager blocks whole``), 12, 24 or 48 layers (``--depths``), peak memory and compile
time beside time.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

import resfx
from resfx._torch import fresh_inductor_cache
from resfx.comparison.measure import Inputs, Runner, interleave, peak_memory, quartiles, set_training
from resfx.comparison.runners import step_of
from resfx.methods.base import methods

from .common import COMPILER, clock, start, write

VOCAB = 512


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def project(self, x: torch.Tensor) -> Iterable[torch.Tensor]:
        """Queries, keys and values, ``(batch, heads, tokens, head_dim)`` each."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Causal self-attention."""
        q, k, v = self.project(x)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm_1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))


class Decoder(nn.Module):
    """A small language model that returns its loss."""

    def __init__(self, depth: int, width: int, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.loss(x, tokens)

    def loss(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What stands behind the blocks."""
        return nn.functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), tokens.flatten())


VARIANTS: dict[str, Any] = {
    "ddl, d_v=4": resfx.DDL(value_channels=4),
    "attnres, blocks of 8": resfx.AttnRes(block=8),
    "attnres, blocks of 8, two phases": resfx.AttnRes(block=8, two_phase=True),
    "denseformer 4x5": resfx.DenseFormer(dilation=4, period=5),
    "depth_read, full": resfx.DepthRead(window=None),
    "short_swa, w=16": resfx.ShortSWA(window=16),
    "short_swa, w=16, d_a=d/8": lambda d: resfx.ShortSWA(window=16, heads=2, head_dim=d // 16),
}
"""Configurations beside the defaults, by the name they have in the tables; a function makes one for a width."""

BACKENDS = ("eager", "blocks", "whole", "graphs")


def config_of(name: str, width: int) -> Any:
    """What ``rewrite`` is given for a name in the tables: a variant, or the method of that name at its defaults."""
    config = VARIANTS.get(name, name)
    return config(width) if callable(config) else config


def lowered(model: Any, backend: str) -> Any:
    """A model ready to run: as it is; each block compiled, equal blocks once, and with CUDA graphs (``graphs``); or
    compiled as one graph."""
    if backend == "eager":
        return model
    if backend == "whole":
        return torch.compile(model, dynamic=False, **COMPILER)
    twin = copy.deepcopy(model)
    options: dict[str, Any] = {"mode": "reduce-overhead"} if backend == "graphs" and not COMPILER else COMPILER
    if not isinstance(model, Decoder) or hasattr(model, "_resfx"):
        return resfx.compile_blocks(twin, dynamic=False, **options)
    for block in twin.blocks:
        block.compile(dynamic=False, **options)
    twin.loss = torch.compile(twin.loss, dynamic=False, **options)
    return twin


def runner(model: Any, inputs: Inputs, backend: str, mode: str) -> tuple[Runner, float]:
    """A runner that has run once, and the CPU seconds of that call: compilation, for a compiled model."""
    set_training(model, mode == "train")
    step_of(model, model, inputs, mode)()  # captures
    twin = lowered(model, backend)

    def ready() -> None:
        torch.compiler.cudagraph_mark_step_begin()  # what a step returned may be written over by the next
        inputs.renew()

    run = Runner(step_of(twin, twin, inputs, mode), ready if backend == "graphs" else inputs.renew)
    with fresh_inductor_cache():
        if backend != "eager":
            torch.compile(lambda x: x + 1, **COMPILER)(torch.ones(8))  # the compiler's own start-up is not the model's
        begin = os.times()
        run.step()
        spent = sum(os.times()[:4]) - sum(begin[:4])
    return run, spent


def measured(case: str, model: Any, run: Runner, spent: float, samples: list[float], options: Any) -> dict[str, Any]:
    """What a row says of one model."""
    low, middle, high = quartiles(samples)
    return {
        "case": case, "median_ms": middle * 1e3, "quartiles_ms": [low * 1e3, high * 1e3], "first_call_s": spent,
        "peak_MiB": peak_memory(run, torch.device(options.device)) / 2**20, "rounds": len(samples),
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def rows_of(plain: Any, baseline: tuple[Runner, float], config: Any, facts: dict[str, Any], tokens: torch.Tensor,
            options: Any) -> list[dict[str, Any]]:  # fmt: skip
    """Two rows: the plain model and a method's, timed in turns."""
    try:
        new = resfx.rewrite(plain, config, args=(tokens,), check=False)
        own = runner(new, Inputs((tokens,), {}), facts["backend"], facts["mode"])
    except Exception as error:
        return [facts | {"case": "after", "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}]
    timed = clock(options.device, options.threads)

    def step_time(run: Runner) -> float:
        run.ready()
        return timed(run.step)

    samples = interleave(baseline[0], own[0], step_time, repeats=options.rounds, warmup=2, seconds=options.seconds)
    found = [facts | measured(c, m, *r, s, options) for c, m, r, s in
             zip(("before", "after"), (plain, new), (baseline, own), samples, strict=True)]  # fmt: skip
    for row in found:
        row |= {"baseline": "before", "ratio": row["median_ms"] / found[0]["median_ms"]}
    print(f"  {found[1]['ratio']:.2f} of the plain time, {own[1]:.0f} s of first call ({baseline[1]:.0f})",
          file=sys.stderr, flush=True)  # fmt: skip
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark can vary."""
    parser.add_argument("--methods", nargs="+", default=None, help="names of methods or variants; all by default")
    parser.add_argument("--backends", nargs="+", default=["eager"], choices=BACKENDS)
    parser.add_argument("--modes", nargs="+", default=["forward", "train"], choices=["forward", "train"])
    parser.add_argument("--depths", nargs="+", type=int, default=[12])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=None, help="stop a row after so long (3 rounds at least)")
    parser.add_argument("--name", default=None, help="name of the result files")


def main() -> None:
    """Compare the plain model with each method's."""
    options = start(__doc__ or "", arguments)
    chosen = options.methods or [*methods(), *VARIANTS]
    rows: list[dict[str, Any]] = []
    for depth, backend, mode in itertools.product(options.depths, options.backends, options.modes):
        torch.manual_seed(0)
        torch._dynamo.reset()
        plain = Decoder(depth, options.width).to(options.device)
        tokens = torch.randint(VOCAB, (1, options.length), device=options.device)
        facts = {"depth": depth, "shape": [1, options.length, options.width], "dtype": "float32",
                 "backend": backend, "mode": mode}  # fmt: skip
        baseline = runner(plain, Inputs((tokens,), {}), backend, mode)
        for name in chosen:
            print(name, depth, backend, mode, file=sys.stderr, flush=True)
            found = rows_of(plain, baseline, config_of(name, options.width), facts, tokens, options)
            rows += [{"group": name} | row for row in found]
    rows.sort(key=lambda r: chosen.index(r["group"]))
    head = (
        "One call of a decoder with random weights, before and after the rewrite, the two in turns. `train` is forward,"
        " loss and backward. `blocks`: equal blocks share one compiled function (of the plain model too); `whole`: one"
        " compiled graph. `peak_MiB` is what a step allocates at its highest, parameters not counted. `first_call_s`"
        " is the CPU time of the first call with an empty kernel cache, the capture not counted: the compile time. No"
        " floor is given: a model is not one operator."
    )
    columns = ("depth", "shape", "backend", "mode", "case", "ratio", "peak_MiB", "median_ms", "quartiles_ms",
               "first_call_s", "parameters")  # fmt: skip
    name = options.name or "-".join(["models", *(b for b in options.backends if b != "eager")])
    write(name, rows, options, head, columns)


if __name__ == "__main__":
    main()
