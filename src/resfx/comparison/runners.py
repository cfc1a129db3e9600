"""One model as a :class:`~resfx.comparison.measure.Runner` on each backend: eager, compiled, ONNX Runtime."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resfx._torch import compile_backend, fresh_inductor_cache
from resfx.errors import ExportError
from resfx.passes.capture.calls import bind
from resfx.passes.capture.structure import Flattener
from resfx.passes.check.values import tensors_of

from .measure import Inputs, Runner, operator_count


class Unavailable(ExportError):
    """A backend that cannot run a mode at all."""


@contextlib.contextmanager
def runner_on(backend: str, model: nn.Module, inputs: Inputs, mode: str) -> Iterator[Runner]:
    """A runner whose first step has been run and timed.

    Args:
        backend: ``eager``, ``compiled`` (Inductor), ``compiled:<torch.compile backend>`` or ``onnxruntime``.
        mode: ``forward`` (without gradients) or ``train`` (forward, loss, backward, gradients cleared).

    Raises:
        Unavailable: if the backend cannot run the mode.
        Exception: whatever the model or the backend raises.
    """
    name, _, option = backend.partition(":")
    if name == "onnxruntime":
        if mode == "train":
            raise Unavailable("not run", "ONNX Runtime is timed for inference only")
        with tempfile.TemporaryDirectory(prefix="resfx-") as folder:
            yield _onnxruntime(model, inputs, Path(folder) / "model.onnx")
    elif name == "compiled":
        with fresh_inductor_cache():  # compile time is only comparable when neither finds the other's kernels
            runner = _compiled(model, inputs, mode, option or "inductor")
        yield runner
    else:
        runner = Runner(step_of(model, model, inputs, mode), inputs.renew)
        _first(runner)
        runner.nodes = operator_count(runner)
        yield runner


def step_of(call: Callable[..., Any], model: nn.Module, inputs: Inputs, mode: str) -> Callable[[], Any]:
    """One step as a function. ``call`` is the model or what was compiled from it."""
    if mode == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return call(*inputs.args, **inputs.kwargs)

        return forward
    parameters = list(model.parameters())
    weights: dict[int, torch.Tensor] = {}

    def train() -> None:
        with torch.enable_grad():
            loss_of(call(*inputs.args, **inputs.kwargs), weights).backward()
        for parameter in parameters:
            parameter.grad = None

    return train


def loss_of(output: Any, weights: dict[int, torch.Tensor]) -> torch.Tensor:
    """The loss in a model's output, else a fixed projection of every output that has a gradient.

    Args:
        output: what the model returned; its ``loss``, or a scalar among its tensors, is taken.
        weights: of the projection, filled in when first needed so that later steps do not make them again.

    Raises:
        ExportError: if no output has a gradient.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    tensors = [t for t in tensors_of(output) if t.requires_grad]
    if loss is None:
        loss = next((t for t in tensors if t.ndim == 0), None)
    if loss is not None:
        return loss
    if not tensors:
        raise ExportError("no training step", "no output of the model has a gradient", "modes=('forward',)")
    total = []
    for number, tensor in enumerate(tensors):
        if number not in weights:
            ramp = torch.arange(tensor.numel(), device=tensor.device, dtype=torch.float32)
            weights[number] = torch.cos(ramp).to(tensor.dtype)
        total.append(torch.dot(tensor.reshape(-1), weights[number]).float())
    return total[0] if len(total) == 1 else torch.stack(total).sum()


def _first(runner: Runner) -> None:
    runner.ready()
    start = time.perf_counter()
    runner.step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    runner.first = time.perf_counter() - start


def _compiled(model: nn.Module, inputs: Inputs, mode: str, backend: str) -> Runner:
    sizes: list[int] = []
    lower = compile_backend(backend)

    def counting(graph: torch.fx.GraphModule, example: list[Any]) -> Any:
        sizes.append(sum(n.op.startswith("call_") for n in graph.graph.nodes))
        return lower(graph, example)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    # Compiled code is kept per code object; with one of its own no earlier comparison can use up its cache.
    forward.__code__ = forward.__code__.replace(co_name=f"forward_{id(forward)}")
    if backend == "inductor":
        torch.compile(lambda x: x + 1)(torch.ones(8))  # the compiler's own start-up is not the model's
    runner = Runner(step_of(torch.compile(forward, backend=counting), model, inputs, mode), inputs.renew)
    _first(runner)
    if not sizes:
        raise ExportError("not compiled", "torch.compile found no graph and fell back to eager")
    runner.nodes = sum(sizes)
    runner.note = f"{len(sizes)} graphs" if len(sizes) > 1 else ""
    return runner


def _onnxruntime(model: nn.Module, inputs: Inputs, path: Path) -> Runner:
    from resfx.export import session, to_onnx

    start = time.perf_counter()
    exported = to_onnx(model, path, args=inputs.args, kwargs=inputs.kwargs, check=False)
    live = session(path)
    feeds = _feeds(live, model, inputs)
    runner = Runner(lambda: live.run(None, feeds))
    runner.step()
    runner.first = time.perf_counter() - start
    runner.nodes = sum(exported.nodes.values())
    return runner


def _feeds(live: Any, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Arrays for a session: its inputs are the tensors of the call, in the order of the signature."""
    flat = Flattener()
    flat.flatten(bind(inspect.signature(model.forward), inputs.args, inputs.kwargs))
    tensors = [t.detach().cpu().numpy() for t in flat.leaves if isinstance(t, torch.Tensor)]
    names = [i.name for i in live.get_inputs()]
    if len(names) != len(tensors):
        raise ExportError(
            "cannot run the exported model", f"it has inputs {names}, the call {len(tensors)} tensors",
            "pass every tensor that the model reads as an argument, and no other",
        )  # fmt: skip
    return dict(zip(names, tensors, strict=True))
