"""The page of a study: what was run, on what, the figures, and what they show, as far as they do."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from resfx.methods.base import methods

from .learned import picture_of, probe_runs
from .plan import GRAFT_RATE, GRAFT_TOKENS
from .plot import plot_curves, plot_depth, plot_differences, plot_parameters
from .results import Results, Row
from .run import CONTROLS, PLAIN
from .tokens import BYTES

TITLES = {"scratch": "From scratch", "graft": "Grafted onto a trained plain model"}


def write_page(results: Results, path: str | os.PathLike[str], command: str) -> None:
    """Write the page, and beside it, in a folder of its name, its figures, ``results.json`` and ``results.csv``.

    Args:
        results: of :func:`resfx.studies.study.study`, with a finished run at least.
        command: the line that made it.
    """
    path = Path(path)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    results.to_json(folder / "results.json")
    results.to_csv(folder / "results.csv")
    parts = [_head(results, command), _setup(results)]
    parts += [_setting(results, setting, folder) for setting in results.settings]
    parts += [_learned(results, folder), _limits(results)]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _head(results: Results, command: str) -> str:
    partial = ""
    if len(results.runs) < results.planned:
        partial = (
            f"\n\n**Partial: {len(results.runs)} of {results.planned} runs are finished.** The same command goes on"
            " with the rest."
        )
    return f"# Does it help? A study at {results.facts['size']} size\n\nMade by\n\n    {command}{partial}"


def _setup(results: Results) -> str:
    facts, size, any_run = results.facts, results.bench.size, results.runs[0]
    plain = next((r for r in results.runs if r["label"] == PLAIN), any_run)
    steps, documents = plain["recipe"]["steps"], facts["documents"]
    machines = ", ".join(sorted({f"{r['machine']} ({r['device']}, {r['threads']} threads)" for r in results.runs}))
    rates = (
        f"chosen for each row, the plain model too, among {', '.join(f'{r:g}' for r in facts['rates'])} by the loss of"
        " one seed on documents apart"
        if facts["rates"]
        else "one for all rows, tuned for none: a method that wants another rate than this is not done justice"
    )
    trained = f"a byte-level BPE of {size.vocabulary} entries, trained on the training documents"
    vocabulary = trained if size.vocabulary > BYTES else "bytes as they are"
    batch, first, warm = f"{size.batch} rows of {size.length}", f"{facts['tokens']:,}", plain["recipe"]["warmup"]
    return f"""## What was run

- Model: a {facts["host"]} of {size.layers} blocks, width {size.width}, {plain["parameters"]:,} parameters, float32.
- Text: {facts["source"]}.
  {documents["train"]} documents to train on, {documents["held"]} held out, {documents["tune"]} for choosing rates; a
  document belongs where a hash of its name puts it.
- Tokens: {vocabulary}. {facts["text_tokens"]:,} of them to train on, {facts["bytes_per_token"]:.2f} bytes each.
- From scratch: {first} tokens, {steps} steps of {batch}, `start="published"`. Grafts: the plain model of the same seed,
  trained as above, rewritten with `start="preserve"` and trained on with {GRAFT_TOKENS:g} times as many tokens at
  {GRAFT_RATE:g} times the rate, beside the plain model trained on alike.
- AdamW, warm-up over {warm:.0%} of the steps, a cosine down to a tenth, gradients clipped at 1; weight decay 0.1 on the
  host's matrices only.
- Learning rates: {rates}.
{_forms(results)}\
- In a seed all rows have the same first weights, as far as they have them in common, and the same batches in the same
  order. Losses are means over the same held-out windows, in nats per token.
- Machine: {machines}; torch {any_run["torch"]}. Times are of the processor, without evaluation."""


def _forms(results: Results) -> str:
    """What the rows have beside their methods' defaults."""
    found = {}
    for run in results.runs:
        config = run["method"] or {}
        if (cls := methods().get(config.get("method", ""))) and run["label"] not in found:
            usual = json.loads(json.dumps(cls().to_dict()))
            own = [f"{k}={v}" for k, v in json.loads(json.dumps(config)).items() if k != "start" and v != usual.get(k)]
            found[run["label"]] = ", ".join(own)
    said = "; ".join(f"`{label}` has `{own}`" for label, own in found.items() if own)
    return f"- Options beside the defaults: {said}.\n" if said else ""


def _setting(results: Results, setting: str, folder: Path) -> str:
    rows, size = results.rows(setting), results.bench.size
    others = [row for row in rows if row.difference is not None]
    title, name = TITLES[setting], folder.name
    plot_curves(folder / f"{setting}-curves.png", title, rows, size.batch * size.length)
    parts = [f"## {title}", results.table(setting, markdown=True), _words(rows, others)]
    if setting == "graft":
        parts.append(_begins(rows))
    if controlled := results.controlled(setting):
        lines = [f"- `{label}` less `{control}`: {difference}" for label, control, difference in controlled]
        parts.append("\n".join(["Against plain models of the same size or time:\n", *lines]))
    if others:
        plot_differences(folder / f"{setting}-differences.png", title, others)
        plot_parameters(folder / f"{setting}-parameters.png", title, rows)
        parts.append(f"![differences]({name}/{setting}-differences.png)")
    parts.append(f"![curves]({name}/{setting}-curves.png)")
    if others:
        parts.append(f"![parameters]({name}/{setting}-parameters.png)")
    return "\n\n".join(parts)


def _words(rows: Sequence[Row], others: Sequence[Row]) -> str:
    """What the differences say, from their intervals and from nothing else."""
    several = [row for row in others if row.difference is not None and row.difference.seeds > 1]
    single = [row.label for row in others if row not in several]
    said = []
    if single:
        said.append(
            f"One seed only of {_listed(single)}: no interval, and nothing said about whether a difference is more than"
            " the luck of a seed."
        )
    better = [r.label for r in several if r.difference and r.difference.is_clear and r.difference.mean < 0]
    worse = [r.label for r in several if r.difference and r.difference.is_clear and r.difference.mean > 0]
    if several:
        unclear = [r.label for r in several if r.label not in (*better, *worse)]
        said.append(f"The 95 % interval lies below zero (better than plain) for {_listed(better)}; above zero (worse)"
                    f" for {_listed(worse)}; it contains zero for {_listed(unclear)}.")  # fmt: skip
        said.append(
            f"Intervals are over {min(r.difference.seeds for r in several if r.difference)} or more seeds, one row at a"
            f" time: of {len(several)} rows, one in twenty would exclude zero if no method did anything."
        )
    plain = next((row for row in rows if row.label == PLAIN), None)
    if plain is not None and len(plain.losses) > 1:
        spread = max(plain.losses.values()) - min(plain.losses.values())
        said.append(f"The plain model's own losses lie {spread:.4f} apart over seeds.")
    return " ".join(said)


def _begins(rows: Sequence[Row]) -> str:
    """Whether the grafts began where the plain model stood."""
    first = [
        (result["points"][0][1], row.plain[seed]["points"][0][1])
        for row in rows if row.difference is not None
        for seed, result in row.results.items() if seed in row.plain
    ]  # fmt: skip
    same = sum(one == other for one, other in first)
    return f"At step 0, {same} of {len(first)} grafts had the plain model's held-out loss bit for bit."


def _learned(results: Results, folder: Path) -> str:
    seed, name = min(run.seed for run in results.done), folder.name
    runs = [run for run in results.done if run.seed == seed and run.setting == "scratch"]
    if all(run.method is None for run in runs):
        return ""
    seen = probe_runs(runs, results.bench)
    pictures = []
    for run in runs:
        if (quantity := picture_of(seen[run.label])) is not None:
            file = f"probe-{re.sub(r'[^a-z0-9_]+', '-', run.label)}.png"
            quantity.draw(folder / file)
            pictures.append(f"`{run.label}`, {quantity.name}:\n\n![{run.label}]({name}/{file})")
    for kind, title, axis in (("norm", "Norm of the stream", "|x|"), ("gradient", "Gradient in the stream", "norm")):
        curves = {label: one[f"stream/{kind}"].by_depth().tolist() for label, one in seen.items()}
        plot_depth(folder / f"stream-{kind}.png", title, curves, f"{axis}, mean over tokens")
    return "\n\n".join([
        "## What the new parameters learned",
        f"Of the models trained from scratch in seed {seed}, on one held-out batch, by `resfx.probe`: what was learned,"
        " not whether it helps. A wide stream is the mean of its channels; behind the last block the method has read"
        " them out. Where a method's reads leave the running sum aside, as published Attention"
        " Residuals do, the gradient in it is zero and not drawn.",
        f"![norm]({name}/stream-norm.png)", f"![gradient]({name}/stream-gradient.png)", *pictures,
    ])  # fmt: skip


def _limits(results: Results) -> str:
    costs = [row.cost for s in results.settings for row in results.rows(s) if row.cost and row.label != PLAIN]
    slower = f" (here x {statistics.median(costs):.2f} in the median)" if costs else ""
    controls = results.facts["controls"]
    missing = [n for n in CONTROLS if n not in controls]
    without = f" There is no control of equal {' or '.join(missing)} on this page." if missing else ""
    plain = next((r for r in results.runs if r["label"] == PLAIN), results.runs[0])
    return (
        "## What this does not show\n\nHow a method does at another size, on another text, with more tokens, or at its"
        f" own best rate. A run from scratch has {results.facts['tokens'] / plain['parameters']:.2g} tokens for each"
        f" parameter, {plain['recipe']['steps']} steps in all: what a start gains or loses in them need not last."
        f" Tokens are equal, time is not: methods cost time, run eagerly on this machine{slower}, and"
        f" parameters.{without}"
    )


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels) or "none"
