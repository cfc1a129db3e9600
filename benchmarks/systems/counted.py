"""Pipelines: what crosses from stage to stage by method, predicted, counted on the wire, and simulated at scale.

``python -m benchmarks.systems`` writes ``docs/systems.md``. Residual Stream Duality (arXiv 2603.16039) argues that
reads over depth carry states across pipeline stages, and that the shortcut and mixers over positions do not.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

import resfx

from .pipeline import Link, borders, step_time

PAGE = Path(__file__).parents[1] / "docs" / "systems.md"
Vectors = Callable[[int], float]
"""Vectors of the stream's width that cross behind so many blocks of two sublayers."""

METHODS: dict[str, tuple[Any, str, Vectors]] = {
    "(plain)": (None, "1", lambda b: 1),
    "ddl": (resfx.DDL(), "1", lambda b: 1),
    "ddl, 4 value channels": (resfx.DDL(value_channels=4), "n", lambda b: 4),
    "hyper_connections": (resfx.HyperConnections(), "n", lambda b: 4),
    "mhc": (resfx.MHC(), "n", lambda b: 4),
    "short_swa": (resfx.ShortSWA(), "1", lambda b: 1),
    "canon": (resfx.Canon(), "1", lambda b: 1),
    "attnres": (resfx.AttnRes(), "2l + 2", lambda b: 2 * b + 2),
    "attnres, blocks of 8": (resfx.AttnRes(block=8), "3 + ceil(2l / 8)", lambda b: 3 + math.ceil(2 * b / 8)),
    "delta_attnres": (resfx.DeltaAttnRes(), "2l + 2", lambda b: 2 * b + 2),
    "denseformer": (resfx.DenseFormer(), "l + 1", lambda b: b + 1),
    "elc": (resfx.ELC(), "l + 2", lambda b: b + 2),
    "mudd": (resfx.MUDD(), "l + 1", lambda b: b + 1),
    "vertical": (resfx.VerticalAttention(), "l + 1", lambda b: b + 1),
    "depth_read": (resfx.DepthRead(), "min(l + 1, K)", lambda b: min(b + 1, 4)),
}
WIDTH, LAYERS, ROWS, LENGTH, MICRO = 32, 6, 8, 8, 4
LINKS = [Link("NVLink, 450 GB/s", 450e9, 5e-6), Link("InfiniBand, 50 GB/s", 50e9, 1e-5)]
BIG = {"layers": 128, "width": 8192, "tokens": 4096, "micro": 256, "flops": 4e14}
"""The simulated model, a micro-batch's tokens, micro-batches, and what a device computes in a second."""

TEXT = """# Pipelines: what crosses between stages

Made by `python -m benchmarks.systems`. A model is cut between blocks by `resfx.split`; what crosses is what the stages
behind read, every state at every border (nothing is kept by a stage that has seen it already). A block has two
sublayers; there are 4 channels `n`, and the window `K` of `depth_read` is 4.

## Counted

A Llama of {LAYERS} blocks, width {WIDTH}, float32. The number of vectors of the stream's width behind `l` blocks: by
formula, and as `resfx.split` reports it at every border. Then a training step by 1F1B in two processes over gloo,
{ROWS} rows of {LENGTH} tokens in {MICRO} micro-batches: the bytes that the formula predicts at the middle border, and
those that were sent.

{COUNTED}

The shortcut (`ddl`) and mixers over positions (`short_swa`, `canon`) add nothing, as Residual Stream Duality argues;
channels cost their number; a read over all sublayers grows with depth, one over finished blocks of eight sublayers an
eighth as fast.

## Simulated

1F1B with {BIG_layers} blocks of width {BIG_width}, {BIG_micro} micro-batches of {BIG_tokens} tokens, bfloat16, devices
of {TERA} TFLOP/s; a backward pass takes twice a forward pass, transfers run beside the computation. Step time over that
of the plain model's pipeline, without the method's own arithmetic; and what the stage that holds most keeps of what it
received for backward passes to come. This is `benchmarks/pipeline.py`; it was not held against measured steps.

{SIMULATED}
"""


def stages_of(method: Any, count: int) -> resfx.Stages:
    """The stages of a small Llama with the method."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48))  # fmt: skip
    ids = torch.zeros(ROWS // MICRO, LENGTH, dtype=torch.long)
    new = model if method is None else resfx.rewrite(model, method, args=(ids,), check=False)
    return resfx.split(new, count, args=(ids,))


def vectors_at(stages: resfx.Stages) -> list[float]:
    """Vectors that cross each border, as split reports them."""
    return [sum(c.bytes_per_token for c in border) / (4 * WIDTH) for border in stages.borders]


def sent_by(rank: int, method: Any, folder: str) -> int:
    """Bytes that one of two processes sends in a training step."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    stage, sent, real = stages_of(method, 2)[rank], [0], dist.P2POp

    def counted(op: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent[0] += tensor.nbytes if op is dist.isend else 0
        return real(op, tensor, *args, **kwargs)

    dist.P2POp = counted  # type: ignore[assignment, misc]
    try:
        schedule = Schedule1F1B(
            PipelineStage(stage, rank, 2, torch.device("cpu")), MICRO,
            loss_fn=lambda y, t: torch.nn.functional.cross_entropy(y.flatten(0, 1), t.flatten()),
        )  # fmt: skip
        ids = torch.randint(64, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
        schedule.step(ids) if rank == 0 else schedule.step(target=ids)
    finally:
        dist.P2POp = real  # type: ignore[misc]
        dist.destroy_process_group()
    return sent[0]


def on_the_wire(method: Any) -> list[int]:
    """Bytes forward and backward between two stages in a training step."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        return [done.result() for done in [pool.submit(sent_by, rank, method, folder) for rank in range(2)]]


def counted(names: list[str]) -> list[str]:
    """A row for each method: the formula, what split reports, what was sent."""
    lines = [f"| method | d-vectors behind l blocks | l = 1 ... {LAYERS - 1}, by `resfx.split` | bytes predicted"
             " (l = 3) | sent forward | sent back |", "|---|---|---|---|---|---|"]  # fmt: skip
    for name in names:
        method, formula, vectors = METHODS[name]
        found = vectors_at(stages_of(method, LAYERS))
        expected = [vectors(i) for i in range(1, LAYERS)]
        size = int(vectors(LAYERS // 2) * WIDTH * 4 * ROWS * LENGTH)
        forward, back = on_the_wire(method)
        print(name, found, size, forward, back, flush=True)
        wrong = "" if found == expected and forward == back == size else " **unlike the formula**"
        shown = ", ".join(f"{v:g}" for v in found)
        lines.append(f"| {name} | {formula}{wrong} | {shown} | {size} | {forward} | {back} |")
    return lines


def simulated(names: list[str]) -> list[str]:
    """Step time over the plain pipeline's, and gigabytes of received states that a stage holds at most."""
    counts = (8, 32, 128)
    lines = ["| method | " + " | ".join(f"{n} stages, {link.name}" for n in counts for link in LINKS)
             + " | " + " | ".join(f"GB held, {n} stages" for n in counts) + " |",
             "|---" * (1 + len(counts) * (1 + len(LINKS))) + "|"]  # fmt: skip
    layers, vector = int(BIG["layers"]), 2 * BIG["width"] * BIG["tokens"]
    block = 24 * BIG["width"] ** 2 * BIG["tokens"] / BIG["flops"]
    for name in names:
        vectors, times, held = METHODS[name][2], [], []
        for count in counts:
            sizes = [v * vector for v in borders(vectors, layers, count)]
            plain = [vector] * len(sizes)
            forward = block * layers / count
            for link in LINKS:
                ours, theirs = (step_time(count, int(BIG["micro"]), forward, s, link) for s in (sizes, plain))
                times.append(f"{ours / theirs:.2f}")
            waiting = [size * (count - stage) for stage, size in enumerate(sizes, 1)]
            held.append(f"{max(waiting) / 1e9:.1f}")
        lines.append(f"| {name} | {' | '.join(times)} | {' | '.join(held)} |")
    return lines


def page(names: list[str]) -> str:
    """The whole page."""
    facts = {"LAYERS": LAYERS, "WIDTH": WIDTH, "ROWS": ROWS, "LENGTH": LENGTH, "MICRO": MICRO}
    big = {f"BIG_{k}": f"{v:g}" for k, v in BIG.items()} | {"TERA": f"{BIG['flops'] / 1e12:g}"}
    return TEXT.format(**facts, **big, COUNTED="\n".join(counted(names)), SIMULATED="\n".join(simulated(names)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    out = options.out or (PAGE if options.methods == list(METHODS) else None)
    text = page(options.methods)
    if out:
        out.write_text(text)


if __name__ == "__main__":
    main()
