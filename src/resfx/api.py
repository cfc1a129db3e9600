"""The whole way through, on one screen: capture, sites, streams, rewrite, fold, check, the user's class."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import nn

from resfx._torch import tracing
from resfx.methods.base import Method, Start, method_of
from resfx.methods.options import refuse_wrong_arguments
from resfx.passes.capture.clone import copy_sharing_parameters
from resfx.passes.capture.inputs import Example, Named, Positional, example_of, outside_inference_mode
from resfx.passes.check import GraphDiffers
from resfx.passes.scopes.application import Application
from resfx.passes.scopes.filters import DEFAULT_FORMS, forms_of, globs_of
from resfx.report.report import Report
from resfx.runtime.module import Rewritten, hand_back
from resfx.runtime.parallel import refuse_weights_elsewhere
from resfx.runtime.rewriting import Rewriting

from .errors import OptionError, ResfxError, meant, nearest
from .passes import Source, apply_methods, check_rewrite, find_sites, fold, source_of

Model = TypeVar("Model", bound=nn.Module)


def scan(model: Any, args: Positional | None = None, kwargs: Named | None = None) -> Report:
    """Find every residual add of a model, and say why each other add of two tensors is not one. Nothing is changed.

    Args:
        model: an ``nn.Module``, ``torch.fx.GraphModule``, ``ExportedProgram`` or the path of a ``.pt2`` file.
        args: example inputs, as ``forward`` takes them: a tuple, or one tensor where there is one argument.
        kwargs: those given by name; what a tokenizer returns is one. Neither is needed for an fx-traceable model, a
            captured graph, or a model that offers ``dummy_inputs``.

    Raises:
        InputError: if the inputs come in a form that is not taken, or do not fit ``forward``.
        ModelError: if the model itself raises on them.
        CaptureError: if the model runs and cannot be captured; says which operator, where, and what to do.
    """
    source = source_of(model, args, kwargs)
    if source.example:
        source.try_out(source.model, *source.example)
    call = source.call(*source.example) if source.example and not source.shared else None
    with tracing():
        capture = source.capture(source.model, call)
        nodes = len(capture.graph.nodes)
        return Report(type(source.model).__name__, *find_sites(capture.graph, source.model), nodes)


@overload
def rewrite(
    model: Model, mode: str | Method | Sequence[str | Method] = ..., args: Positional | None = ...,
    kwargs: Named | None = ..., *, include: str | Sequence[str] = ..., exclude: str | Sequence[str] = ...,
    forms: str | Sequence[str] = ..., start: Start | None = ..., check: bool = ...,
) -> Model: ...  # fmt: skip
@overload
def rewrite(
    model: str | os.PathLike[str] | torch.export.ExportedProgram, mode: str | Method | Sequence[str | Method] = ...,
    args: Positional | None = ..., kwargs: Named | None = ..., *, include: str | Sequence[str] = ...,
    exclude: str | Sequence[str] = ..., forms: str | Sequence[str] = ..., start: Start | None = ..., check: bool = ...,
) -> nn.Module: ...  # fmt: skip
def rewrite(
    model: Any,
    mode: str | Method | Sequence[str | Method] = "ddl",
    args: Positional | None = None,
    kwargs: Named | None = None,
    *,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    forms: str | Sequence[str] = DEFAULT_FORMS,
    start: Start | None = None,
    check: bool = True,
    **unknown: Any,
) -> Any:
    """Replace a model's residual adds; returns a module of the model's own class.

    The result shares the model's parameters under their names and adds new ones under ``resfx.``. The model passed
    in is not changed; a rewritten model can be rewritten again with another method.

    Args:
        model, args, kwargs: as for :func:`scan`.
        mode: a method's name or config, or several: mixers over positions act first, then routes, then the rest in the
            order given. A method's options are those of its config.
        include, exclude: globs over the names of the modules that own the adds, e.g. ``"model.layers.*"``.
        forms: forms of adds to claim; ``"resampled"`` and ``"outer"`` (long skips) only when named.
        start: overrides the config's: ``"preserve"`` or ``"published"``.
        check: run the rewritten graph against the original on the example inputs before returning.

    Raises:
        OptionError: for a mode, form, glob or keyword that does not exist, with the nearest that does.
        InputError: if the inputs come in a form that is not taken, or do not fit ``forward``.
        ModelError: if the model itself raises on them.
        CaptureError: if the model runs and cannot be captured.
        NoSitesError: if nothing is left to rewrite.
        ConflictError: if two methods claim one site.
        CheckError: if the rewritten graph breaks a promise; says at which site.
    """
    methods = _methods(mode, start, unknown)
    refuse_wrong_arguments(rewrite, forms=forms, check=check)
    filters = globs_of(include, "include"), globs_of(exclude, "exclude"), forms_of(forms)
    again = model if isinstance(model, Rewritten) else None
    source = again._resfx.source if again else source_of(model, args, kwargs)
    base: Any = again or source.model
    refuse_weights_elsewhere(base, type(base).__name__, sharded=True)
    applications = list(again._resfx.applications) if again else []
    applications += [Application(m, *filters) for m in methods]
    example = example_of(args, kwargs) or source.example
    with outside_inference_mode():
        if example:
            source.try_out(base, *example)
        return rewrite_by(source, base, applications, example, check)


def rewrite_by(
    source: Source, base: nn.Module, applications: list[Application], example: Example | None, check: bool
) -> Any:
    """The result, held against the original; where the two differ, captured as the model behaves in eager mode."""
    _name_banks(applications)
    if not (check and example):
        return _rewritten(source, base, applications, example)
    fresh = [a.copy() for a in applications]
    new = _rewritten(source, base, applications, example)
    may_differ = not (source.shared or source.as_eager)
    try:
        _check(new, base, example, applications, exact=may_differ)
    except GraphDiffers:  # some models compute otherwise while they are exported
        try:
            other = _rewritten(dataclasses.replace(source, as_eager=True), base, fresh, example)
            _check(other, base, example, fresh, exact=True)
            return other
        except (GraphDiffers, ResfxError):
            _check(new, base, example, applications)
    return new


def _check(new: Any, base: nn.Module, example: Example, applications: list[Application], exact: bool = False) -> None:
    """The check. What it has seen, in the captures that it makes itself too, is judged from then on."""
    new._resfx.checked = None
    check_rewrite(new, copy_sharing_parameters(base), example, applications, exact=exact)
    new._resfx.checked = all(a.method.start == "preserve" for a in applications) and not any(
        t.is_meta for t in new.parameters()
    )


@tracing()
def _rewritten(source: Source, base: nn.Module, applications: list[Application], example: Example | None) -> Any:
    """The way through: copy, capture, find, rewrite, fold, hand back in the user's class."""
    tree = copy_sharing_parameters(base)
    call = source.call(*example) if example and not source.shared else None
    capture = source.capture(tree, call)
    nodes = len(capture.graph.nodes)
    found = find_sites(capture.graph, tree)
    surgery = apply_methods(capture.graph, tree, found, applications)
    skips = found.skips + [s for a in applications for s in a.skips]
    report = Report(type(tree).__name__, found.sites, skips, surgery.streams, nodes, surgery.changes)
    known = dataclasses.replace(source, model=nn.Module())  # the model may go
    rewriting = Rewriting(known, applications, report, _rewritten)
    folded = fold(capture, tree, source, rewriting.shared)
    rewriting.acts |= {act for call in folded for act in call.acts}
    rewriting.hand_out(folded, tree)
    return hand_back(tree, rewriting, base)


def _methods(mode: Any, start: Start | None, unknown: Mapping[str, Any]) -> list[Method]:
    """The configs that a ``mode`` means, once no keyword is left over."""
    modes: list[Any] = list(mode) if isinstance(mode, (list, tuple)) else [mode]
    if not modes:
        raise OptionError("mode names no method", f"{mode!r}", "mode='ddl', or mode=resfx.DDL(...), or a list of them")
    found = [method_of(m, start) for m in modes]
    for name, value in unknown.items():
        asked = f"rewrite takes no argument {name!r}"
        for method in found:
            if any(f.name == name for f in dataclasses.fields(method)):
                cls = type(method).__name__
                raise OptionError(asked, f"it is an option of {cls}", f"mode=resfx.{cls}({name}={value!r:.40})")
        names = [n for n, p in inspect.signature(rewrite).parameters.items() if p.kind is not p.VAR_KEYWORD]
        near = meant(name, names)
        raise OptionError(
            asked, f"its arguments: {', '.join(nearest(name, names))}",
            f"{near}={value!r:.40}" if near else "a method's options go to its config, mode=resfx.DDL(...)",
        )  # fmt: skip
    return found


def _name_banks(applications: list[Application]) -> None:
    taken = {a.key for a in applications if a.key}
    for application in applications:
        name = application.method.name or type(application.method).__name__.lower()
        key, n = name, 1
        while not application.key and key in taken:
            key, n = f"{name}_{n}", n + 1
        application.key = application.key or key
        taken.add(application.key)
