"""The original and the rewritten model, run on one call from the same seeds, and left as they were."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from resfx.passes.capture.marking.acts import functions_behind, generators
from resfx.passes.holdings import Holdings
from resfx.passes.preserve import preserved, watched_run, without_recomputation
from resfx.report.progress import log

from .gradients import Gradients, backward, compared
from .learning import Values
from .values import pairs, tensors_of
from .watch import Seen, seed, watched

Example = tuple[tuple[Any, ...], dict[str, Any]]


@contextlib.contextmanager
def untouched(*modules: nn.Module, also: Iterable[torch.Tensor] = ()) -> Iterator[None]:
    """Inside, modules may run from seed 0 and change mode; afterwards they and the generators are as before.

    Args:
        also: parameters that they write into.
    """
    # torch.nn.TransformerEncoder runs another kernel without gradients, which rounds otherwise than its training.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with preserved(*modules, also=also), without_recomputation():
            seed(0)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@dataclass
class Outcome:
    """What one call of a model did: its results, and what it left behind.

    Attributes:
        results: the output, the arguments after the call, and by name what the model keeps.
        states: of the random number generators of Python and numpy.
        grads: of the original's parameters, where they were asked for.
        seen: what it does that a graph may lose, where it was watched and has gradients.
    """

    results: Any
    states: dict[str, Any]
    grads: Gradients | None = None
    seen: Seen = field(default_factory=Seen)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a model keeps from call to call: its buffers, and tensors that are attributes or lie in lists, dicts and
    objects that are."""
    plain = {str(place): tensor for place, tensor in Holdings(model).places if type(tensor) is torch.Tensor}
    return {**dict(model.named_buffers()), **plain}


def written_by(model: nn.Module, example: Example) -> list[torch.Tensor]:
    """The parameters that a call of a model writes into, as it is or in training mode: it is run in both to see."""
    found: dict[int, torch.Tensor] = {}
    for train in (False,) if all(m.training for m in model.modules()) else (False, True):

        def run(train: bool = train) -> None:
            if train:
                try:
                    model.train()
                except NotImplementedError:  # a captured program has no other mode
                    return
            args, kwargs = copy.deepcopy(example)
            with torch.set_grad_enabled(model.training):
                model(*args, **kwargs)

        try:
            watched_run(model, partial(untouched, model), run, found)
        except Exception as error:  # what it raises is told where its results are wanted
            log.info("%s raises on the example, in training mode %s: %s", type(model).__name__, train, error)
    return list(found.values())


class Trial:
    """The two models and the call; every run gets arguments of its own and the same seeds."""

    def __init__(self, new: Any, before: nn.Module, example: Example) -> None:
        self.new, self.before, self.example = new, before, example
        self.names = list(compared(before))
        here = state_of(new)
        self.state = [n for n in state_of(before) if n in here]
        self.start: Values = {
            n: p.detach().clone() for n, p in new.named_parameters() if n.startswith("resfx.") and p.requires_grad
        }
        self.shape: Any = None
        self.written = written_by(before, example)

    def untouched(self) -> contextlib.AbstractContextManager[None]:
        """What runs of both models are made in."""
        return untouched(self.new, self.before, also=self.written)

    def run(self, model: nn.Module, values: Values | None = None) -> Outcome:
        """One call from seed 0, with some parameters replaced."""
        args, kwargs = copy.deepcopy(self.example)
        seed(0)
        output = torch.func.functional_call(model, values, args, kwargs) if values else model(*args, **kwargs)
        state = state_of(model)
        return Outcome((output, args, kwargs, {n: state.get(n) for n in self.state}), generators())

    def original(self) -> Outcome:
        """A call of the original with gradients, watched."""
        with torch.enable_grad(), watched() as seen:
            outcome = self.run(self.before)
        outputs = tensors_of(outcome.results[0])
        seen.functions = functions_behind(outputs, set())
        self.shape = outcome.results
        try:
            outcome.grads = backward(outputs, {n: self.before.get_parameter(n) for n in self.names})
            outcome.seen = seen
        except Exception as error:  # some backward passes written by hand refuse to run but in training
            log.info("%s has no gradients to compare, its own backward fails: %s", type(self.new).__name__, error)
        return outcome

    def forward(self, values: Values) -> list[torch.Tensor]:
        """Outputs that the original has, of the rewritten model with some parameters replaced."""
        with torch.enable_grad():
            return self.outputs(self.run(self.new, values))

    def outputs(self, outcome: Outcome) -> list[torch.Tensor]:
        return [b for _, b in pairs(self.shape[0], outcome.results[0])]
