"""Before and after: latency, throughput, memory and size of two models, on every backend that can run them."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from resfx.errors import CaptureError, ExportError, OptionError, ResfxError
from resfx.methods.options import refuse_wrong_arguments
from resfx.passes.capture.inputs import Example, Named, Positional, example_of, outside_inference_mode
from resfx.passes.capture.source import source_of
from resfx.passes.preserve import preserved
from resfx.report.progress import duration
from resfx.runtime.module import Rewritten
from resfx.runtime.saved.folder import refuse_unwritable

from .measure import Inputs, interleave, peak_memory, set_training, wall_clock
from .result import Comparison, Measured, Row, verdict
from .runners import runner_on

BACKENDS = ("eager", "compiled", "onnxruntime")
MODES = ("forward", "train")


@outside_inference_mode()
def compare(
    before: nn.Module,
    after: nn.Module,
    args: Positional | None = None,
    kwargs: Named | None = None,
    *,
    backends: Sequence[str] = BACKENDS,
    modes: Sequence[str] = MODES,
    repeats: int = 20,
    warmup: int = 3,
    seconds: float | None = None,
    progress: bool = True,
    plot: str | os.PathLike[str] | None = None,
    json: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Time two models on the same inputs, in turns, in this process.

    Both models are left as they were: parameters, gradients, buffers, training flags, random number generators.
    ``forward`` runs in eval mode without gradients; ``train`` runs forward, the model's loss (or a fixed projection
    of its outputs), backward and clearing of gradients, in training mode, without an optimizer. A backend that
    fails costs its row, which says why, and nothing else.

    Args:
        before, after: two models that take the same call; where they are, they are measured.
        args, kwargs: the call. Left out, the example that ``after`` was rewritten with, or ``dummy_inputs``.
        backends: of ``eager``, ``compiled``, ``onnxruntime``; ``compiled:NAME`` for another torch.compile backend.
        modes: of ``forward`` and ``train``.
        repeats: rounds; each runs both models once, and rounds alternate in who goes first.
        warmup: rounds before those.
        seconds: stop measuring a row after this long, but not before three rounds.
        progress: a line for each step on the error stream.
        plot, json: files to write as well.

    Raises:
        ExportError: without inputs.
        InputError, ModelError: if a model does not take this call, or raises on it.
        OptionError: for unknown backends or modes, fewer than one round, or if ``plot`` or ``json`` cannot be written
            where they are to be.
    """
    refuse_wrong_arguments(compare, before=before, after=after, repeats=repeats, warmup=warmup, seconds=seconds,
                           progress=progress)  # fmt: skip
    _validate(backends, modes, repeats, warmup)
    for file in (plot, json):
        if file is not None:
            refuse_unwritable(file)
    args, kwargs = _example(before, after, args, kwargs)
    with preserved(before, after):
        for model in (before, after):
            set_training(model, "forward" not in modes)
            _try_out(model, args, kwargs)
    device = _device(before, args, kwargs)
    say = _teller(progress)
    setting = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "repeats": repeats, "warmup": warmup,
        "inputs": [f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in Inputs(args, kwargs).tensors],
        "memory": "cuda allocator" if device.type == "cuda" else "cpu allocator",
    }  # fmt: skip
    counts = [sum(p.numel() for p in model.parameters()) for model in (before, after)]
    result = Comparison(_names(before, after), (counts[0], counts[1]), _tokens(before, args, kwargs), [], setting)
    start = time.perf_counter()
    for number, (backend, mode) in enumerate([(b, m) for b in backends for m in modes], 1):
        head = f"[{number}/{len(backends) * len(modes)}] {backend} {mode}: "
        rounds = repeats, warmup, seconds
        row = _row(backend, mode, (before, after), (args, kwargs), device, rounds, partial(say, head))
        result.rows.append(row)
        say(head, row.reason or f"{_median(row.before)} -> {_median(row.after)}, {verdict(row)}")
    setting["seconds"] = round(time.perf_counter() - start, 3)
    if json is not None:
        result.save_json(json)
    if plot is not None:
        result.plot(plot)
    return result


def _row(
    backend: str,
    mode: str,
    models: tuple[nn.Module, nn.Module],
    call: tuple[Any, Any],
    device: torch.device,
    rounds: tuple[int, int, float | None],
    say: Callable[..., None],
) -> Row:
    repeats, warmup, seconds = rounds
    at = ""
    try:
        with preserved(*models), ExitStack() as stack:
            runners = []
            for at, model in zip(("before", "after"), models, strict=True):
                say(f"preparing {at}")
                set_training(model, mode == "train")
                runners.append(stack.enter_context(runner_on(backend, model, Inputs(*call), mode)))
            at, (first, second) = "", runners
            say(f"measuring, {repeats} rounds")
            samples = interleave(
                first, second, wall_clock(device), repeats=repeats, warmup=warmup, seconds=seconds
            )  # fmt: skip
            counted = backend != "onnxruntime"
            memory = [peak_memory(r, device) if counted else None for r in runners]
    except Exception as error:
        # Both models fail alike where the backend is missing: only then is "before" no news.
        return Row(backend, mode, reason=("after: " if at == "after" else "") + _reason(error))
    old, new = (Measured(s, r.first, m, r.nodes, r.note) for s, r, m in zip(samples, runners, memory, strict=True))
    return Row(backend, mode, old, new)


def _reason(error: Exception) -> str:
    if isinstance(error, ResfxError):
        return "; ".join(filter(None, (error.asked, error.found, error.try_ and f"try: {error.try_}")))
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _validate(backends: Sequence[str], modes: Sequence[str], repeats: int, warmup: int) -> None:
    for given, known, what in ((backends, BACKENDS, "backends"), (modes, MODES, "modes")):
        listed = isinstance(given, Sequence) and not isinstance(given, str)
        names = [str(g).partition(":")[0] if what == "backends" else g for g in given] if listed else []
        if not names or not all(name in known for name in names):
            raise OptionError(f"{what} must be a sequence of {', '.join(known)}", f"{given!r}", f"{what}={known}")
    if repeats < 1 or warmup < 0:
        raise OptionError("compare: repeats must be at least 1 and warmup at least 0", f"{repeats} and {warmup}",
                          "repeats=20, warmup=3, the defaults")  # fmt: skip


def _example(before: Any, after: Any, args: Any, kwargs: Any) -> Example:
    if (given := example_of(args, kwargs)) is not None:
        return given
    for model in (after, before):
        if isinstance(model, Rewritten) and model._resfx.source.example:
            return model._resfx.source.example
        if isinstance(getattr(model, "dummy_inputs", None), dict):
            return (), dict(model.dummy_inputs)
    raise ExportError("cannot compare without inputs", "neither model offers any", "pass args=(...) or kwargs={...}")


def _try_out(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What a model raises on its inputs is said once, before anything is measured."""
    runtime = getattr(model, "_resfx", None)
    if runtime is not None:
        runtime.source.try_out(model, args, kwargs)
        return
    try:
        source = source_of(model, args, kwargs)
    except CaptureError:  # a wrapper: it can be measured all the same
        return
    source.try_out(source.model, args, kwargs)


def _device(model: nn.Module, args: Any, kwargs: Any) -> torch.device:
    tensors = [*model.parameters(), *Inputs(args, kwargs).tensors]
    return next((t.device for t in tensors), torch.device("cpu"))


def _tokens(model: nn.Module, args: Any, kwargs: Any) -> int | None:
    """Tokens per call: of every argument named ``*input_ids``, else of the first integers of batch x sequence."""
    bound = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    named = [v for k, v in bound.items() if k.endswith("input_ids") and isinstance(v, torch.Tensor)]
    if named:
        return sum(t.numel() for t in named)
    found = (t for t in Inputs(args, kwargs).tensors if t.ndim == 2 and t.dtype in (torch.int32, torch.int64))
    first = next(found, None)
    return first.numel() if first is not None else None


def _names(before: nn.Module, after: nn.Module) -> tuple[str, str]:
    def name(model: Any) -> str:
        methods = (
            dict.fromkeys(a.method.name for a in model._resfx.applications) if isinstance(model, Rewritten) else ()
        )
        return " + ".join([type(model).__name__, *methods])

    return name(before), name(after)


def _teller(progress: bool) -> Callable[..., None]:
    start = time.perf_counter()

    def tell(*text: str) -> None:
        if progress:
            print(f"{time.perf_counter() - start:7.1f} s  {''.join(text)}", file=sys.stderr, flush=True)

    return tell


def _median(measured: Measured | None) -> str:
    return duration(measured.median) if measured else "-"
