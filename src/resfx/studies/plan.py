"""Which runs a study consists of, and in which order: whatever stops it, what is done can be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from resfx.errors import OptionError
from resfx.methods.base import Method, method_of

from .results import Row
from .run import PLAIN, Bench, Run, Setting, control_label
from .sizes import wider
from .training import Recipe

GRAFT_RATE, GRAFT_TOKENS = 0.3, 0.5  # of a run from scratch
Modes = Sequence[str | Method] | Mapping[str, str | Method]


def labelled(modes: Modes) -> dict[str, Method]:
    """The methods of a study by what their rows are called: ``"ddl"``, ``"ddl, value_channels=4"``, or a key given.

    Raises:
        OptionError: for a method that does not exist, or two rows of one name.
    """
    if isinstance(modes, Mapping):
        return {label: method_of(mode) for label, mode in modes.items()}
    found: dict[str, Method] = {}
    for mode in [modes] if isinstance(modes, (str, Method)) else modes:
        method = method_of(mode)
        plain = {f.name: f.default for f in dataclasses.fields(method)}
        changed = [f"{n}={v}" for n, v in vars(method).items() if n != "start" and n in plain and v != plain[n]]
        label = ", ".join([method.label, *changed])
        if label in found:
            raise OptionError(f"two rows are called {label!r}", "each is a method with its options", "each once")
        found[label] = method
    return found


def plain_run(bench: Bench, setting: Setting, seed: int, tokens: int, rate: float) -> Run:
    """The plain model in a setting: what every method's run differs from in its method only."""
    size = bench.size
    steps = max(1, round(tokens / (size.batch * size.length)))
    scratch = Run(PLAIN, None, "scratch", seed, Recipe(steps, rate), size.inner)
    if setting == "scratch":
        return scratch
    recipe = Recipe(max(1, round(steps * GRAFT_TOKENS)), rate * GRAFT_RATE, first=steps)
    return Run(PLAIN, None, "graft", seed, recipe, size.inner, scratch)


def with_method(plain: Run, label: str, method: Method, rate: float | None = None) -> Run:
    """The run of a method beside the plain model's, at another rate if one is given."""
    recipe = plain.recipe if rate is None else dataclasses.replace(plain.recipe, rate=rate)
    return dataclasses.replace(plain, label=label, method=method, recipe=recipe)


def main_runs(
    bench: Bench, methods: Mapping[str, Method], seeds: Sequence[int], settings: Sequence[Setting], tokens: int,
    rates: Mapping[str, float],
) -> Iterator[Run]:  # fmt: skip
    """Seed by seed: all from scratch, then all grafts. The plain model comes first: grafts need its weights."""
    for seed in seeds:
        for setting in dict.fromkeys(("scratch", *settings)):
            plain = plain_run(bench, setting, seed, tokens, rates[PLAIN])
            yield plain
            if setting in settings:
                share = 1.0 if setting == "scratch" else GRAFT_RATE
                yield from (with_method(plain, n, m, rates[n] * share) for n, m in methods.items())


def sweep_runs(
    bench: Bench, methods: Mapping[str, Method], seed: int, tokens: int, rates: Sequence[float]
) -> Iterator[Run]:
    """Every row from scratch at every rate, in one seed."""
    for rate in rates:
        plain = plain_run(bench, "scratch", seed, tokens, rate)
        yield plain
        yield from (with_method(plain, label, method) for label, method in methods.items())


def control_runs(bench: Bench, rows: Sequence[Row], controls: Sequence[str], plain: Mapping[int, Run]) -> Iterator[Run]:
    """Plain models from scratch that have a row's number of parameters, or that are trained for as long as it takes.

    A row that adds less than a feature of each MLP has no model of its size but the plain one, and one that is no
    slower none of its time.

    Args:
        rows: the methods' rows, finished.
        plain: the plain model's run by seed.
    """
    for row in rows:
        if row.label == PLAIN:
            continue
        inner = wider(bench.host, bench.size, row.any["new_parameters"])
        for seed in row.results:
            run = plain[seed]
            if "parameters" in controls and inner > bench.size.inner:
                yield dataclasses.replace(run, label=control_label("parameters", row.label), inner=inner)
            if "time" in controls and (row.cost or 0) > 1:
                recipe = dataclasses.replace(run.recipe, steps=round(run.recipe.steps * (row.cost or 1)))
                yield dataclasses.replace(run, label=control_label("time", row.label), recipe=recipe)
