"""What the models of a study learned: the probes of its finished runs."""

from __future__ import annotations

from typing import Any

import torch

from resfx.probes.probe import probe, states_of, stream_of
from resfx.probes.quantity import Quantity
from resfx.probes.result import Probe
from resfx.runtime.blocks import block_names

from .run import Bench, Run, build
from .tokens import Order

SHOWN = ("beta", "weights", "mixing, product", "taps")  # a method's picture is the first of these that it has


def probe_runs(runs: list[Run], bench: Bench) -> dict[str, Probe]:
    """Finished runs of methods, probed on the first held-out batch, by label; and the plain models' streams."""
    length, batch = bench.size.length, bench.size.batch
    held = bench.tokens.windows("held", length, bench.device)[:batch]
    call = {"input_ids": held, "labels": held}
    found: dict[str, Probe] = {}
    blocks: list[str] = []
    for run in sorted(runs, key=lambda run: run.method is None):  # a method's report has the names of the blocks
        first = Order(bench.tokens.windows("train", length, bench.device), batch, run.seed).at(run.recipe.first)
        model = build(run, bench, first, held)
        model.load_state_dict(torch.load(run.folder(bench.out) / "weights.pt", weights_only=True))
        if run.method is None:
            found[run.label] = Probe(stream_of("stream", states_of(model, blocks, ((), call), None)))
        else:
            found[run.label], blocks = probe(model, kwargs=call), block_names(model)
    return {run.label: found[run.label] for run in runs}


def picture_of(seen: Probe) -> Quantity | None:
    """The quantity that says most about a method; ``None`` where it told nothing."""
    told = {name.partition("/")[2]: name for name in seen if not name.startswith(("stream/", "original/"))}
    chosen: Any = next((told[name] for name in SHOWN if name in told), next(iter(told.values()), None))
    return None if chosen is None else seen[chosen]
