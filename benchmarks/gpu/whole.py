"""Whole models before and after a rewrite: training steps, short calls, tokens generated; eager, compiled, CUDA graphs.

The decoder is that of :mod:`benchmarks.models`, which needs no other package; ``generate`` is transformers' own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

import resfx
from benchmarks.models import VOCAB, Decoder, config_of, rows_of, runner
from resfx.comparison.measure import Inputs, Runner, interleave, quartiles

from .record import Writer
from .settings import Settings

METHODS = ("ddl", "attnres, blocks of 8", "hyper_connections", "mhc", "short_swa, w=16, d_a=d/8", "denseformer 4x5")
GENERATING = ("ddl", "attnres, blocks of 8", "mhc")
SHAPES = {"train": (8, 1024), "forward": (1, 16)}
"""A training step of as many rows of as many tokens; a call without gradients, of few: as in decoding."""


def models(backend: str, mode: str, writer: Writer, settings: Settings) -> None:
    """A row for each method, beside the plain model in the same process."""
    torch._dynamo.reset()
    shape, (depth, width) = ((2, 8), (2, 32)) if settings.dry else (SHAPES[mode], (12, 768))
    dtype = torch.float32 if settings.dry else torch.bfloat16
    tokens = torch.randint(VOCAB, shape, device=settings.device)
    options = SimpleNamespace(device=settings.device, threads=2, rounds=settings.rounds, seconds=10.0)
    facts = {"depth": depth, "shape": [*shape, width], "dtype": str(dtype)[6:], "backend": backend, "mode": mode}

    @functools.cache
    def plain() -> tuple[Any, tuple[Runner, float]]:
        torch.manual_seed(0)
        model = Decoder(depth, width).to(settings.device, dtype)
        return model, runner(model, Inputs((tokens,), {}), backend, mode)

    def row(name: str) -> dict[str, Any]:
        model, baseline = plain()
        rows = rows_of(model, baseline, config_of(name, width), facts, tokens, options)
        return {"rows": [{"group": "Decoder", "method": name} | r for r in rows]}

    for name in METHODS[:1] if settings.dry else METHODS:
        writer.once(name, functools.partial(row, name))


def generate(writer: Writer, settings: Settings) -> None:
    """A row for each method: milliseconds a token of ``generate``, with a growing cache and one of fixed size, which
    transformers compiles on a GPU."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        writer.record.note = "transformers is not installed: the short calls of the decoder stand for decoding"
        return
    depth, width, tokens = (2, 32, 4) if settings.dry else (12, 768, 64)
    config = LlamaConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=depth,
                         num_attention_heads=4, num_key_value_heads=4, vocab_size=VOCAB,
                         max_position_embeddings=256)  # fmt: skip
    torch.manual_seed(0)
    dtype = torch.float32 if settings.dry else torch.bfloat16
    model = LlamaForCausalLM(config).eval().to(settings.device, dtype)
    ids = torch.randint(VOCAB, (1, 16), device=settings.device)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def step(of: Any, cache: str | None) -> Callable[[], Any]:
        more = {} if cache is None else {"cache_implementation": cache}
        return lambda: of.generate(ids, attention_mask=torch.ones_like(ids), **options, **more)

    def seconds(run: Runner) -> float:
        begin = time.perf_counter()
        run.step()
        if settings.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def row(name: str, cache: str | None) -> dict[str, Any]:
        new = resfx.rewrite(model, config_of(name, width), args=(ids,), check=False)
        pair = [Runner(step(m, cache)) for m in (model, new)]
        taken = interleave(pair[0], pair[1], seconds, repeats=2 if settings.dry else 7, warmup=2, seconds=15)
        rows: list[dict[str, Any]] = []
        for case, samples in zip(("before", "after"), taken, strict=True):
            low, middle, high = (1e3 * s / tokens for s in quartiles(samples))
            rows.append({"group": "Llama, generate, per token", "method": name, "shape": [1, 16, width], "depth": depth,
                         "dtype": str(dtype)[6:], "backend": cache or "growing cache", "mode": "generate", "case": case,
                         "median_ms": middle, "quartiles_ms": [low, high], "rounds": len(samples)})  # fmt: skip
        for r in rows:
            r["ratio"] = r["median_ms"] / rows[0]["median_ms"]
        return {"rows": rows}

    for cache in (None, "static"):
        for name in GENERATING[:1] if settings.dry else GENERATING:
            writer.once(f"{name}, {cache or 'growing'}", functools.partial(row, name, cache))
