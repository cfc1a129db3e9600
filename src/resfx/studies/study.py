"""The plain model and every method side by side: ``resfx.study``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from resfx.errors import OptionError, nearest

from .bar import Bar
from .plan import Modes, control_runs, labelled, main_runs, plain_run, sweep_runs
from .results import Results
from .run import CONTROLS, PLAIN, STARTS, Bench, Run, execute
from .sizes import size_of
from .text import corpus_of
from .tokens import tokenized


def study(
    methods: Modes,
    *,
    out: str | os.PathLike[str],
    seeds: int | Sequence[int] = 3,
    size: str = "tiny",
    settings: str | Sequence[str] = ("scratch", "graft"),
    host: str = "llama",
    text: Any = None,
    tokens: int | None = None,
    rate: float | None = None,
    rates: Sequence[float] = (),
    controls: str | Sequence[str] = (),
    device: str = "cpu",
    seconds: float | None = None,
    say: Callable[[str], None] | None = None,
) -> Results:
    """Train the plain model and every method from one start in one order of data, and compare their held-out losses.

    A run is one method in one seed, either from scratch with ``start="published"`` or grafted onto the plain model that
    was trained with this seed, with ``start="preserve"``; a graft's loss at step 0 is held to be the plain model's, bit
    for bit, and it is compared with the plain model trained on as long. Each run has a folder of its own under ``out``
    and a checkpoint every minute: the same call again goes on where the last one stopped.

    Args:
        methods: names or configs; a mapping names the rows.
        out: the study's folder.
        seeds: how many, or which.
        size: ``"tiny"``, ``"small"`` or ``"gpt2"``, see :data:`resfx.studies.sizes.SIZES`.
        settings: ``"scratch"``, ``"graft"`` or both.
        host: ``"llama"`` or ``"gpt2"``.
        text: as for :func:`resfx.studies.text.corpus_of`; by default the documentation that ships with Python.
        tokens: of a run from scratch; by default the size's.
        rate: the largest learning rate of every row; by default the size's.
        rates: instead, one of these for each row: the one with which its first seed has the least loss on documents
            apart, neither trained on nor held out. All rows, the plain model too, are given the same choice.
        controls: ``"parameters"``: also the plain model with as many parameters as each method, by a wider MLP;
            ``"time"``: also the plain model trained for the time that each method takes. From scratch.
        device: of torch.
        seconds: begin no run after so long; 0 gathers what is there.
        say: gets a line about every run that is finished.

    Returns:
        What is finished, a table when printed.

    Raises:
        OptionError: for options that do not exist, or a folder that holds another study.
        InputError: for a text that cannot be used.
        CheckError: if a graft does not begin as the plain model.
        MissingPackageError: without transformers.
    """
    wanted = tuple(_known(settings, STARTS, "settings"))
    checked = _known(controls, CONTROLS, "controls")
    by_label = labelled(methods)
    which = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not which:
        raise OptionError("a study needs a seed", "none", "seeds=1")
    given, out = size_of(size), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    words = tokenized(corpus_of(text), given.vocabulary, out)
    bench, length = Bench(out, host, given, words, device), tokens or given.tokens
    end = None if seconds is None else time.monotonic() + seconds
    facts = {
        "size": size, "host": host, "seeds": which, "tokens": length, "source": words.source, "digest": words.digest,
        "documents": words.documents, "text_tokens": len(words.parts["train"]),
        "bytes_per_token": words.bytes_per_token, "rates": list(rates), "controls": list(checked),
    }  # fmt: skip

    with Bar(end, say) as bar:
        chosen = dict.fromkeys((PLAIN, *by_label), rate or given.rate)
        tried = list(sweep_runs(bench, by_label, which[0], length, rates))
        swept = _do(tried, bench, bar)
        for label in chosen if rates else ():
            found = {run.recipe.rate: result["tuning_loss"] for run, result in swept if run.label == label}
            if len(found) < len(set(rates)):
                return Results(swept, len(tried), bench, facts)
            chosen[label] = min(found, key=found.__getitem__)
        runs = list(main_runs(bench, by_label, which, wanted, length, chosen))
        done = _do(runs, bench, bar)
        results = Results(done, len(runs), bench, facts)
        if checked and len(done) == len(runs):
            plain = {seed: plain_run(bench, "scratch", seed, length, chosen[PLAIN]) for seed in which}
            more = list(control_runs(bench, results.rows("scratch"), checked, plain))
            results = Results([*done, *_do(more, bench, bar)], len(runs) + len(more), bench, facts)
    return results


def _do(runs: Sequence[Run], bench: Bench, bar: Bar) -> list[tuple[Run, dict[str, Any]]]:
    """The results of runs: those that are there, and those for which there is time."""
    found = [run.result(bench) for run in runs]
    bar.expect(run.recipe.steps for run, result in zip(runs, found, strict=True) if result is None)
    for i, run in enumerate(runs):
        if found[i] is None and not bar.is_over:
            with bar.of(f"{run.setting}, {run.label}, seed {run.seed}") as told:
                found[i] = result = execute(run, bench, told)
            bar.say(f"{run.setting}, {run.label}, seed {run.seed}: held-out loss {result['loss']:.4f},"
                    f" {result['seconds'][1]:.0f} s")  # fmt: skip
    return [(run, result) for run, result in zip(runs, found, strict=True) if result is not None]


def _known(given: str | Sequence[str], known: Iterable[str], name: str) -> list[Any]:
    asked = [given] if isinstance(given, str) else list(given)
    for one in asked:
        if one not in known:
            raise OptionError(f"{name} has no {one!r}", f"there are {', '.join(nearest(one, known))}", f"{name}=...")
    return asked
