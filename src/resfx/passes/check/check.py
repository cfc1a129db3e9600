"""The promises of a rewrite, held against the original on real inputs before the user gets the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from resfx.errors import CaptureError, CheckError, ModelError, ResfxError
from resfx.passes.scopes.application import Application
from resfx.report.progress import log, step, warn

from .blame import first_broken_site, raised_in
from .gradients import Gradients, backward, check_original, finite, names
from .learning import check_learning
from .trial import Example, Outcome, Trial
from .values import OtherForm, Pair, difference, pairs, rounded, same
from .watch import watched

ROUNDING = 64  # units of a type's precision, of the largest output, that a graph may differ from eager code by


class GraphDiffers(Exception):
    """The captured graph computes otherwise than the eager code, before any rewrite."""


@step("checking {new.__class__.__name__} against the original")
def check_rewrite(
    new: Any, before: nn.Module, example: Example, applications: Sequence[Application], exact: bool = False
) -> None:
    """Hold a rewritten model against the original, on one call.

    At a preserving start: the same results (tensors, what the call leaves in its arguments and in modules, the next
    random numbers of Python and numpy), and the same gradients of the original's parameters. Where a training call of
    the original does what a graph may lose and the call at hand does not (a backward written by hand, a tensor hook,
    random numbers of Python or numpy), the same of a training call: a second capture. At any start: a gradient for
    every new parameter, now or after one step; a warning where only the example or the model keeps it away.

    Costs five forward and one or two backward passes of the original; of the rewritten model two and one, and two or
    more of each where a new parameter learns only after a step. Memory: the gradients of up to 2**28 parameters, twice,
    and parameters that the original's forward writes into.
    No state is kept: random number generators, training flags, parameters and buffers are put back, no ``.grad`` is
    written.

    Args:
        before: a copy of the original that may be run and left as it comes.
        exact: raise where the graph itself differs from the eager code, so that it can be captured otherwise.

    Raises:
        GraphDiffers: if ``exact``.
        CheckError: naming the first site that breaks, or the parameters whose gradient is wrong or missing.
    """
    if any(t.is_meta for t in new.parameters()):
        return
    trial = Trial(new, before, example)
    try:
        _hold(trial, applications, exact)
    except Exception as error:
        told = isinstance(error, (CheckError, GraphDiffers, CaptureError))
        if told and not isinstance(error, ModelError):  # which is of a module inside, that the original runs
            raise
        raise _failed(trial, error, applications) from error


def _hold(trial: Trial, applications: Sequence[Application], exact: bool) -> None:
    new = trial.new
    preserved = all(a.method.start == "preserve" for a in applications)
    if preserved:
        with trial.untouched():
            _check_output(trial, applications, exact)
    with trial.untouched():
        usual = trial.original()
    with trial.untouched():
        first = _check_gradients(trial, usual) if preserved else None
        check_learning(new, trial.forward, trial.start, first)
    with trial.untouched():
        _check_training(trial, usual, preserved)


def _failed(trial: Trial, error: Exception, applications: Sequence[Application]) -> CheckError:
    """What to raise where the rewritten model does not get through a call, or its way back, that the original does."""
    name = type(trial.new).__name__
    with trial.untouched():
        site = raised_in(trial.new, error) or first_broken_site(trial.new, *trial.example, applications)
    first = str(error).strip().splitlines()[:1]
    return CheckError(
        f"the rewritten {name} raises on the example, which the original runs",
        f"{type(error).__name__}: {''.join(first)}" + (f"; at {site}" if site else ""),
        "exclude= that site, or mend the method's forward there; check=False returns the module all the same",
    )


def _check_output(trial: Trial, applications: Sequence[Application], exact: bool) -> None:
    with torch.set_grad_enabled(trial.before.training):
        want, got = trial.run(trial.before), trial.run(trial.new)
    _check_generators(trial, want, got)
    form, found = _paired(want, got)
    if not form and all(same(a, b) for a, b in found):
        return
    site = first_broken_site(trial.new, *trial.example, applications)
    if site is None and exact:
        raise GraphDiffers
    name = type(trial.new).__name__
    if site is None and not form and all(rounded(a, b, ROUNDING) for a, b in found):
        warn(
            f"the captured graph of {name} rounds differently from its eager code, by up to {_worst(found):.2g} before"
            " any rewrite: every rewritten add is exact, the start as a whole equal to rounding"
        )
        return
    raise CheckError(
        f"the rewritten {name} does not start where the original stands",
        (form or _apart(found)) + (f"; first at {site}" if site else "; not at a rewritten site"),
        "exclude= that site, or report it; check=False returns the module all the same",
    )


def _paired(want: Outcome, got: Outcome) -> tuple[str, list[Pair]]:
    """What keeps two outcomes from being held side by side, and the tensors of both."""
    for name, kept in want.results[-1].items():
        now = got.results[-1][name]
        if kept is not None and now is not None and kept.shape != now.shape:
            return f"{name} is {tuple(kept.shape)} in the original and {tuple(now.shape)} here, as if set in" \
                   " rewritten code (a table that grows can stand in a submodule of its own)", []  # fmt: skip
    try:
        return "", pairs(want.results, got.results)
    except OtherForm as other:
        return str(other), []


def _worst(found: Sequence[Pair]) -> float:
    return max((difference(a, b) for a, b in found), default=0.0)


def _apart(found: Sequence[Pair]) -> str:
    nans = sum(int((a.isnan() != b.isnan()).sum()) for a, b in found if a.shape == b.shape)
    return f"{nans} entries are NaN in one of the two alone" if nans else f"outputs differ by up to {_worst(found):.3g}"


def _check_generators(trial: Trial, want: Outcome, got: Outcome) -> None:
    lost = sorted(name for name, state in want.states.items() if state != got.states[name])
    if lost:
        raise CheckError(
            f"the rewritten {type(trial.new).__name__} does not draw the random numbers that the original draws",
            f"numbers from {' and '.join(lost)} are drawn once, while the model is captured, and stay in the graph",
            "draw them with torch (torch.rand and torch.where), or outside forward and pass them in",
        )


def _check_gradients(trial: Trial, usual: Outcome) -> Gradients | None:
    """Hold the gradients of the original's parameters; those of the new ones come back."""
    values = {n: v.clone().requires_grad_() for n, v in trial.start.items()}
    host = {n: trial.new.get_parameter(n) for n in trial.names}
    name, want = type(trial.new).__name__, usual.grads or {}
    with watched() as seen:
        grads = backward(trial.forward(values), {**host, **values})
    check_original(name, want, grads or dict.fromkeys(want), str(usual.seen))
    if lost := sorted(usual.seen.retained - seen.retained):
        warn(f"{name}: retain_grad() at {', '.join(lost)} is lost in rewritten code, and no .grad is kept there;"
             " register_full_backward_hook on the module shows it gradients")  # fmt: skip
    if grads is None:
        return None
    bad = sorted(n for n in values if not finite(grads[n]))
    if bad and all(finite(g) for g in want.values()):
        raise CheckError(
            f"{len(bad)} of {len(values)} new parameters have a gradient that is not finite at the start",
            names(bad), "exclude= those sites, or mend the method's derivative there",
        )  # fmt: skip
    return {n: grads[n] for n in values}


def _check_training(trial: Trial, usual: Outcome, preserved: bool) -> None:
    """Where training does what a graph may lose, hold a training call of both under the same seeds."""
    name = type(trial.new).__name__
    want = _training_call(trial)
    if not preserved:
        seen = want.seen if want is not None and want.seen else usual.seen
        if seen:
            warn(f"{name} has {seen}, which a capture may lose; a published start leaves nothing to hold it against")
        return
    if want is None or not want.seen.beyond(usual.seen):
        return
    trial.new.train()
    try:
        with torch.enable_grad():
            trial.run(trial.new)  # captures, which itself draws numbers
            got = trial.run(trial.new)
    except ResfxError as error:
        log.info("%s: a training call cannot be captured, which training will say again: %s", name, error)
        return
    _check_generators(trial, want, got)
    form, found = _paired(want, got)
    if form or not all(rounded(a, b, ROUNDING) for a, b in found):
        raise CheckError(
            f"the rewritten {name} does not compute in training what the original does",
            f"{form or _apart(found)}; the original has {want.seen}",
            "take that out of the model's forward, or check=False",
        )  # fmt: skip
    asked = want.grads or {}
    grads = backward(trial.outputs(got), {n: trial.new.get_parameter(n) for n in asked})
    check_original(name, asked, grads or dict.fromkeys(asked), str(want.seen))


def _training_call(trial: Trial) -> Outcome | None:
    """A training call of the original; ``None`` where it is none of its own or cannot be had on the example."""
    if all(m.training for m in trial.before.modules()):
        return None
    try:
        trial.before.train()
        return trial.original()
    except Exception as error:  # a captured program has no other mode; a batch norm may want more than one row
        log.info("%s cannot be run in training mode on the example: %s", type(trial.new).__name__, error)
        return None
