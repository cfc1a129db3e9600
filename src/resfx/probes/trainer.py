"""A probe now and then while the Hugging Face Trainer trains; a loop of one's own calls :func:`resfx.probe` itself.

The import needs transformers: ``from resfx.probes.trainer import ProbeCallback``.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from resfx.passes.capture.inputs import Named, Positional
from resfx.runtime.module import rewriting_of

from .probe import Loss, probe
from .result import Probe


class ProbeCallback(TrainerCallback):
    """Probes one batch, always the same, every so many steps.

    Args:
        args, kwargs, loss: as for :func:`resfx.probe`; on the model's device.
        every: steps between two probes; the first is made before training.
        writer: a ``SummaryWriter`` that gets the scalars, or ``None``.

    Attributes:
        kept: the probes made, by step.
    """

    def __init__(
        self, args: Positional | None = None, kwargs: Named | None = None, *, loss: Loss | None = None,
        every: int = 100, writer: Any = None,
    ) -> None:  # fmt: skip
        if every < 1:
            raise ValueError(f"every must be at least 1 step, not {every}")
        self.args, self.kwargs, self.loss, self.every, self.writer = args, kwargs, loss, every, writer
        self.kept: dict[int, Probe] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A probe of what is to be trained.

        Raises:
            ResfxError: if the model is not a rewritten one.
        """
        rewriting_of(kwargs["model"])
        self._probe(kwargs["model"], state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A probe, if it is time for one."""
        if state.global_step % self.every == 0:
            self._probe(kwargs["model"], state.global_step)

    def _probe(self, model: Any, step: int) -> None:
        self.kept[step] = seen = probe(model, self.args, self.kwargs, loss=self.loss)
        if self.writer is not None:
            seen.write(self.writer, step)
