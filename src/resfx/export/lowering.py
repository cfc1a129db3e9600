"""The way from a rewritten module to a checked ONNX file, on one screen."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from resfx._torch import exporter_log, tracing
from resfx.errors import ExportError, OptionError, ResfxError, require
from resfx.methods.options import refuse_wrong_arguments
from resfx.ops.onnx import RUNTIME
from resfx.ops.record import DOMAIN, operators
from resfx.passes.capture.inputs import Named, Positional, outside_inference_mode
from resfx.report.progress import step
from resfx.runtime.saved.folder import refuse_unwritable, replacing

from . import builtin
from .axes import axis_names, other_example, rename_axes
from .operators import attach_bodies, translation_table
from .repairs import drop_idle_squeezes, expand_rotary_caches, own_names, share_heads
from .trace import Exportable, flatten_model, trace
from .translations import translations
from .verify import verify, wants_reference

RUNTIMES = {"onnxruntime": "ONNX Runtime", "reference": "onnx.reference"}
EXTERNAL_ABOVE = 2**30  # bytes of weights; one protobuf file holds 2 GiB at most

Backend = Literal["onnxruntime", "reference"]
Profile = Literal["portable", "standard", "ort-cuda"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the model; ``data`` is the file with its weights, beside it, or ``None``.
        inputs, outputs: names and shapes; a dynamic axis is a name.
        nodes: number of nodes by domain; ``""`` is standard ONNX, ``"resfx"`` the fused operators, and
            ``"com.microsoft"`` the kernels of ONNX Runtime that their bodies call.
        differences: greatest absolute difference from the eager model by backend, over every check.
        notes: checks that were left out, and why.
    """

    path: Path
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    nodes: dict[str, int]
    differences: dict[str, float] = field(default_factory=dict)
    data: Path | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        weights = f", weights in {self.data.name}" if self.data else ""
        inside = f"{self.nodes[DOMAIN]:,} fused operators of resfx" if self.nodes[DOMAIN] else "no fused operators"
        lines = [f"{self.path}: {sum(self.nodes.values()):,} nodes, {inside}{weights}"]
        for backend, difference in self.differences.items():
            lines.append(f"checked in {RUNTIMES[backend]}: differs from PyTorch by at most {difference:.1e}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


@outside_inference_mode()
@step("exporting to {path}")
def to_onnx(
    new: Any,
    path: str | os.PathLike[str],
    args: Positional | None = None,
    kwargs: Named | None = None,
    *,
    opset: int = 23,
    external_data: Literal["auto"] | bool = "auto",
    check: bool | Backend = True,
    dynamic: bool | Mapping[str, Mapping[int, str]] = True,
    profile: Profile = "portable",
) -> Exported:
    """Export a rewritten module, or any other model, in eval mode to ONNX.

    Inputs have the names of the arguments, outputs the names of the model's output fields; fields that are ``None``
    are left out, and arguments that are not tensors (``use_cache=False``) become part of the graph. The file is
    written to a folder beside the target and moved when every check has passed: a failure leaves nothing behind
    and an older file as it was.

    Args:
        new: a rewritten module, an ``nn.Module``, ``GraphModule`` or ``ExportedProgram``. It is not changed.
        path: the file to write, ``model.onnx``; its folder is made if need be.
        args, kwargs: example inputs; default: those that the model was rewritten with. A batch of one is repeated
            for tracing, which takes a size of 1 for a constant.
        opset: version of standard ONNX, 18 to 25.
        external_data: whether weights go to a file of their own, ``<path>.data``; ``"auto"`` above 1 GB.
        check: hold the file against the eager model, on the example and at a second size of every dynamic axis, in
            ONNX Runtime and in ``onnx.reference``; or in one of the two. The reference evaluator is left out, with
            a note, for more than 256 MB of weights. Half-precision types that ONNX Runtime's CPU has no kernels
            for fail this check.
        dynamic: ``True`` for every axis that the model leaves open, ``False`` for none, or the axes and their
            names, such as ``{"input_ids": {0: "batch", 1: "sequence"}}``.
        profile: ``"portable"`` keeps each fused operator one node in the domain ``resfx``, with its body attached
            as a function, so that any session runs it; ``"standard"`` has standard operators only; ``"ort-cuda"`` is
            ``"portable"`` with bodies that call ONNX Runtime's own kernels (``com.microsoft``) where its CUDA provider
            has one for the node's type. Such a file runs in ONNX Runtime alone, in the release it was made with or a
            later one. Its check runs the CPU's kernels of the same names; where the CPU has none, it is left out, with
            a note.

    Raises:
        MissingPackageError: if ``onnx``, ``onnxscript`` or (for a check) ``onnxruntime`` is not installed.
        OptionError: if ``path`` is a folder or cannot be written to.
        InputError, ModelError: if the model does not take these inputs, or raises on them.
        ExportError: if the model cannot be lowered, a check fails, or the installed ONNX Runtime is too old for
            ``"ort-cuda"``.
        CaptureError, VariantError: if the model cannot be captured with these inputs.
    """
    refuse_wrong_arguments(to_onnx, opset=opset, external_data=external_data, check=check, dynamic=dynamic,
                           profile=profile)  # fmt: skip
    _refuse_bad_options(opset, profile, check, dynamic)
    for package in (
        "onnx",
        "onnxscript",
        *(("onnxruntime",) if check in (True, "onnxruntime") or profile == "ort-cuda" else ()),
    ):
        require(package, "onnx", "ONNX export")
    refuse_unwritable(path)
    fused = profile != "standard"
    flat = flatten_model(new, args, kwargs, fused)
    asked = f"cannot lower {flat.source.cls.__name__} to ONNX"
    with tracing(), _translating(asked):
        program = trace(flat, dynamic, fused)
        share_heads(program)
        drop_idle_squeezes(program)
        names = axis_names(program, flat.inputs, dynamic)
        lowered = _lower(program, flat, opset)
    expand_rotary_caches(lowered.model)
    own_names(lowered.model, "tree.")
    rename_axes(lowered.model, names)
    attach_bodies(lowered.model, operators(), opset, builtin.builtin_for if profile == "ort-cuda" else lambda n: None)
    nodes = Counter(node.domain for node in lowered.model.graph.all_nodes()) + _builtin_nodes(lowered.model)
    nodes.setdefault(DOMAIN, 0)

    target = Path(path)
    weights = sum(v.const_value.nbytes for v in lowered.model.graph.initializers.values() if v.const_value is not None)
    outside = weights > EXTERNAL_ABOVE if external_data == "auto" else external_data
    with replacing(target.parent, target.name) as folder:
        draft = folder / target.name
        lowered.save(str(draft), external_data=outside)
        backends, notes = _backends(lowered.model, draft, check)
        differences, notes = _check(flat, program, draft, backends, notes) if check else ({}, ("not checked",))
    data = target.with_name(target.name + ".data")
    return Exported(
        target, _shapes(lowered.model.graph.inputs), _shapes(lowered.model.graph.outputs), dict(nodes), differences,
        data if outside else None, notes,
    )  # fmt: skip


def _refuse_bad_options(opset: int, profile: str, check: Any, dynamic: Any) -> None:
    if not 18 <= opset <= 25:
        raise OptionError("to_onnx: opset must lie in 18 to 25", f"{opset}: the exporter labels others wrongly",
                          "opset=23, the default")  # fmt: skip
    if isinstance(dynamic, Mapping) and (bare := [n for n, axes in dynamic.items() if "" in axes.values()]):
        raise OptionError(f"to_onnx: an axis of {bare[0]} must have a name", "an empty one", "dynamic=True names them")
    if profile == "ort-cuda" and check == "reference":
        raise OptionError("to_onnx: check='reference' cannot run profile='ort-cuda'", "nodes of ONNX Runtime alone",
                          "check=True, False or 'onnxruntime'")  # fmt: skip


@contextmanager
def _translating(asked: str) -> Iterator[None]:
    """Make errors of the exporter errors of this library, and keep its chatter down."""
    logs = (exporter_log(), logging.getLogger("onnxscript.optimizer"))
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ResfxError:
        raise
    except Exception as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        raise ExportError(
            asked, "; ".join(dict.fromkeys(_brief(cause) for cause in causes[1:] or causes)),
            "dynamic=False, another opset= or profile='standard'; torch.onnx.export(model, ..., report=True) has more",
        ) from error  # fmt: skip
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().split('. See the stack trace')[0]}"


def _lower(program: torch.export.ExportedProgram, flat: Exportable, opset: int) -> Any:
    # Attention has other strides with gradients than without, and the trace was made without.
    with torch.no_grad():
        lowered = torch.onnx.export(
            program, dynamo=True, opset_version=opset, input_names=flat.inputs, output_names=flat.outputs,
            custom_translation_table=translations() | translation_table(operators()), verbose=False,
        )  # fmt: skip
    assert lowered is not None
    return lowered


def _builtin_nodes(model: Any) -> Counter[str]:
    """How many of ONNX Runtime's own kernels the nodes of a model call."""
    calls = sum(_builtin_nodes_of(model, node) for node in model.graph.all_nodes())
    return Counter({RUNTIME: calls} if calls else {})


def _builtin_nodes_of(model: Any, node: Any) -> int:
    return sum(n.domain == RUNTIME for n in model.functions.get(node.op_identifier(), ()))


def _backends(model: Any, draft: Path, check: bool | Backend) -> tuple[list[str], tuple[str, ...]]:
    """What to run a file in, and why not in more."""
    if check is not True:
        return [str(check)] if check else [], ()
    calls = {node: _builtin_nodes_of(model, node) for node in model.graph.all_nodes()}
    if any(calls.values()):
        if all(builtin.runs_on_cpu(node) for node, count in calls.items() if count):
            return ["onnxruntime"], ("not run in the reference evaluator: it does not know com.microsoft",)
        missing = sorted({n.op_type for n, count in calls.items() if count and not builtin.runs_on_cpu(n)})
        return [], (f"not run: the CPU has no kernel for the type of {', '.join(missing)}",)
    if not wants_reference(str(draft)):
        return ["onnxruntime"], ("not run in the reference evaluator: too large",)
    return ["onnxruntime", "reference"], ()


def _check(
    flat: Exportable, program: torch.export.ExportedProgram, draft: Path, backends: list[str], known: tuple[str, ...]
) -> tuple[dict[str, float], tuple[str, ...]]:
    onnx, notes = require("onnx", "onnx", "checking"), list(known)
    try:
        onnx.checker.check_model(str(draft), full_check=True)
    except Exception as error:
        raise ExportError("the exported file is not valid ONNX", str(error), "another opset=, or report it") from error
    examples = [flat.call.leaves]
    other = other_example(program, flat.call.leaves, flat.variant.capture.accepts)
    if other is None:
        notes.append("checked at one size: no axis is dynamic, or the model accepts no other size of it")
    else:
        examples.append(other)
    cases = [(leaves, flat.eager(leaves)) for leaves in examples]
    return verify(str(draft), flat.inputs, flat.outputs, cases, backends), tuple(notes)


def _shapes(values: Any) -> dict[str, tuple[int | str, ...]]:
    return {v.name: tuple(d if isinstance(d, int) else str(d.value) for d in v.shape) for v in values}
