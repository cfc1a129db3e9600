"""One call of a rewritten model, looked at from inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resfx.errors import InputError, OptionError
from resfx.methods.observe import Observed
from resfx.methods.options import refuse_wrong_arguments
from resfx.ops.register import accumulator
from resfx.passes.capture.inputs import Example, Named, Positional, example_of
from resfx.passes.scopes.bank import Placed
from resfx.report.progress import warn
from resfx.runtime.blocks import block_names
from resfx.runtime.module import of, rewriting_of
from resfx.runtime.switch import disabled

from .quantity import Array, Quantity
from .result import Probe
from .watch import Seen, undisturbed, watching_blocks, watching_methods

Loss = Callable[[Any], Tensor]


def probe(new: Any, args: Positional | None = None, kwargs: Named | None = None, *, loss: Loss | None = None) -> Probe:
    """What the methods of a rewritten model do on one call, and what that does to its stream.

    Each method tells its own quantities: gates, weights over depth with their entropy, mixing matrices (multiplied
    over depth too, ``"mhc/mixing, product"``), weights by distance; ``observe`` of its modules says which. Of the
    stream there are ``stream/norm``, the norm ``|x|`` of what every repeated block hands on, and, where there is a
    loss, ``stream/gradient``, the norm of the loss's gradient in it (a wide stream: of the mean of its channels, and in
    what moves them all alike); ``original/norm`` and ``original/gradient`` are those of the same weights with the
    methods switched off.

    The model stays as it is: parameters, their ``grad``, buffers, random numbers. It runs in the mode that it is in,
    eagerly even where it was compiled.

    Args:
        new: what :func:`resfx.rewrite` returned.
        args, kwargs: a batch, as for :func:`resfx.scan`.
        loss: from the model's output to one number; by default the output's ``loss``, if it has one.

    Raises:
        ResfxError: if the module is not a rewritten one.
        OptionError: for a loss that cannot be called, or gives no number.
        InputError, ModelError: without inputs, or with such as ``forward`` does not take or raises on.
    """
    refuse_wrong_arguments(probe, loss=loss)
    rewriting = rewriting_of(new)
    example = example_of(args, kwargs)
    if example is None:
        raise InputError("a probe needs a batch", "neither args nor kwargs", "resfx.probe(new, args=(input_ids,))")
    blocks = block_names(new)
    with undisturbed(new):
        try:
            with watching_methods(new) as seen:
                states = states_of(new, blocks, example, loss)
        except Exception:
            rewriting.source.try_out(new, *example)  # says it if the model itself does not take this call
            raise
        found = _of_methods(seen, {s.name: s.stream for s in of(new).report.sites})
        if states and not rewriting.source.shared:  # a captured graph has no code to go back to
            with disabled(new):
                before = states_of(new, blocks, example, loss)
            ranks = {state.name: state.value.dim() for state in before}
            found |= stream_of("stream", [s.narrow(ranks[s.name]) for s in states]) | stream_of("original", before)
    for application in rewriting.applications:
        if not any(name.startswith(f"{application.key}/") for name in found):
            warn(f"{application.key}: its modules told nothing of themselves on this call")
    return Probe(found)


@dataclass(frozen=True, eq=False)
class State:
    """What a block hands on: its name, the state ``(..., d)`` of the stream, and the loss's gradient in that."""

    name: str
    value: Tensor
    gradient: Tensor | None = None

    def narrow(self, rank: int) -> State:
        """A wide state as the stream that it stands for: the mean of its channels, moved by moving them all alike."""
        if self.value.dim() == rank:
            return self
        return State(self.name, self.value.mean(-2), None if self.gradient is None else self.gradient.sum(-2))


def states_of(model: Any, blocks: Sequence[str], example: Example, loss: Loss | None) -> list[State]:
    """One call of a model, rewritten or not: what its blocks hand on, and where there is a loss the gradient in it."""
    args, kwargs = example
    with torch.enable_grad(), watching_blocks(model, blocks) as seen:
        output = model(*args, **kwargs)
        value = loss(output) if loss is not None else getattr(output, "loss", None)
    if loss is not None and not (isinstance(value, Tensor) and value.numel() == 1):
        raise OptionError("probe: loss must give one number", f"a {type(value).__name__}: {value!r:.60}",
                          "loss=lambda output: output.logits.mean()")  # fmt: skip
    learning = [state for _, state in seen if state.requires_grad]
    gradients: dict[int, Tensor] = {}
    if value is not None and value.requires_grad and learning:
        taken = torch.autograd.grad(value, learning, materialize_grads=True)  # zero where nothing reads the state
        gradients = {id(state): gradient for state, gradient in zip(learning, taken, strict=True)}
    return [State(name, state.detach(), gradients.get(id(state))) for name, state in seen]


def stream_of(label: str, states: list[State]) -> dict[str, Quantity]:
    """Norms of states, and of gradients if all have one, as ``<label>/norm`` and ``<label>/gradient``."""
    places = _numbered([s.name for s in states])
    kinds = {"norm": [s.value for s in states], "gradient": [s.gradient for s in states if s.gradient is not None]}
    found = {}
    for kind, tensors in kinds.items():
        if len(tensors) == len(places):
            norms = tuple(_array(x.to(accumulator(x.dtype)).norm(dim=-1)) for x in tensors)
            found[f"{label}/{kind}"] = Quantity(f"{label}/{kind}", (), places, norms, ((),) * len(places))
    return found


def _of_methods(seen: list[Seen], stream_of: dict[str, int]) -> dict[str, Quantity]:
    """What was told, by quantity; matrices between channels also multiplied along each stream."""
    told: dict[str, list[tuple[Seen, Observed]]] = {}
    for one in seen:
        for name, observed in one.observations.items():
            told.setdefault(f"{one.placed.application}/{name}", []).append((one, observed))
    found = {}
    for name, entries in told.items():
        places = _numbered(_names([one.placed for one, _ in entries]))
        columns = tuple(one.columns(observed) for one, observed in entries)
        axes = entries[0][1].axes
        found[name] = Quantity(name, axes, places, tuple(_array(o.values) for _, o in entries), columns)
        if axes == ("from", "to"):
            streams = [stream_of.get(one.placed.site, 0) for one, _ in entries]
            products = tuple(_array(p) for p in _products(streams, [o.values for _, o in entries]))
            found[f"{name}, product"] = Quantity(f"{name}, product", axes, places, products, columns)
    return found


def _products(streams: Sequence[int], matrices: Sequence[Tensor]) -> list[Tensor]:
    """What the matrices of each stream make of its channels up to and with each add."""
    so_far: dict[int, Tensor] = {}
    out = []
    for stream, matrix in zip(streams, matrices, strict=True):
        so_far[stream] = so_far[stream] @ matrix if stream in so_far else matrix
        out.append(so_far[stream])
    return out


def _names(placed: Sequence[Placed]) -> list[str]:
    """The adds of modules; with their roles where several stand at one."""
    at: dict[str, set[str]] = {}
    for one in placed:
        at.setdefault(one.site, set()).add(one.path)
    return [one.site if len(at[one.site]) == 1 else f"{one.site}, {one.role}" for one in placed]


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Names told apart where one comes several times: a block that is called again."""
    counts: dict[str, int] = {}
    out = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        out.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(out)


def _array(values: Tensor) -> Array:
    return values.detach().to(torch.float64 if values.dtype == torch.float64 else torch.float32).cpu().numpy()
