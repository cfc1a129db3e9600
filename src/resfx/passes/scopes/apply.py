"""Applying a method to a captured graph: which sites it claims, the modules it builds, the surgery of its scope."""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from resfx.errors import ConflictError, NoSitesError, VariantError
from resfx.methods.base import Method, Place
from resfx.methods.depth.base import DepthMethod, DepthPlace
from resfx.passes.capture.normalize import resolves
from resfx.passes.find.graph import dtype, hint, place_module, shape
from resfx.passes.find.site import Site, Skip, Stream
from resfx.passes.scopes.depth.scope import rewrite_stream
from resfx.passes.scopes.sequence.scope import apply_sequence
from resfx.passes.scopes.wide.plan import Step, TokenAxis, token_axis, wide_runs
from resfx.passes.scopes.wide.scope import widen

from .filters import DEFAULT_FORMS, refuse_idle_globs
from .site import rewrite_site


@dataclass
class Application:
    """One ``rewrite`` call: a method and where it acts.

    Attributes:
        method: the config.
        include, exclude: globs over owner names.
        forms: forms of residual adds that may be claimed; ``"outer"`` adds long skips around whole blocks.
        key: name of the bank of new modules in the model's tree, ``resfx.<key>``.
        claimed: names of the sites it rewrote, fixed by the first capture.
    """

    method: Method
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    forms: tuple[str, ...] = DEFAULT_FORMS
    key: str = ""
    claimed: list[str] | None = None
    skips: list[Skip] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return {
            "method": self.method.to_dict(), "include": list(self.include), "exclude": list(self.exclude),
            "forms": list(self.forms), "key": self.key, "claimed": list(self.claimed or []),
        }  # fmt: skip


def apply_method(
    graph: fx.Graph, sites: list[Site], streams: list[Stream], application: Application, tree: nn.Module
) -> None:
    """Rewrite the graph of one capture. The first time modules are built; later captures reuse them.

    Raises:
        NoSitesError: if nothing is left to rewrite.
        ConflictError: if a site was claimed before.
        VariantError: if a later capture lacks a claimed site.
    """
    first = application.claimed is None
    if first and sites:
        refuse_idle_globs(application.include, application.exclude, [s.owner for s in sites], tree)
    chosen = choose(sites, application) if first else find_again(sites, application)
    claimed = SCOPES[application.method.scope](graph, chosen, streams, application, tree)
    if first:
        application.claimed = claimed


def apply_site(
    graph: fx.Graph, chosen: list[Site], streams: list[Stream], application: Application, tree: nn.Module
) -> list[str]:
    """Scope ``site``: every chosen add is replaced by a module of its own. Returns the names of the adds claimed."""
    _forbid_claimed(chosen, application)
    for site in chosen:
        path = module_path(application, site)
        if application.claimed is None:
            place_module(tree, path, application.method.build(place_of(site, tree)))
        site.method = application.method.label
        site.result = rewrite_site(graph, site, tree.get_submodule(path), path, site.method)
    return [s.name for s in chosen]


def apply_wide(
    graph: fx.Graph, chosen: list[Site], streams: list[Stream], application: Application, tree: nn.Module
) -> list[str]:
    """Scope ``wide``: every run of consecutive adds becomes a stream of several channels."""
    _forbid_claimed(chosen, application)
    name = application.method.label
    first, skips, wanted = application.claimed is None, list[Skip](), set(chosen)
    runs: list[tuple[list[Step], TokenAxis]] = []
    for stream in streams:
        # A mixer over positions that was put between two adds is one more branch of the stream.
        members = [s for s in stream.sites if s in wanted or s.form == "mixer"]
        if wanted & set(members):
            tokens = token_axis(graph, tree, stream)
            runs += [(run, tokens) for run in wide_runs(graph, tree, members, skips) if wanted & {s.site for s in run}]
    if first:
        application.skips += skips
    if not runs:
        raise NoSitesError(
            f"no residual add to rewrite with {name}", "; ".join(dict.fromkeys(s.reason for s in skips)),
            "; ".join(dict.fromkeys(s.remedy for s in skips if s.remedy)),
        )  # fmt: skip
    for run, tokens in runs:
        paths = [module_path(application, s.site) for s in run]
        if first:
            _place_stream(run, paths, application.method, tree)
        _require_stream(paths, name, tree)
        widen(graph, run, paths, tree, name, tokens)
        for step in run:
            step.site.method = step.site.reads = name
    return [step.site.name for run, _ in runs for step in run if step.site in wanted]


def _require_stream(paths: list[str], name: str, tree: nn.Module) -> None:
    needed = [f"{paths[0]}.expand", *(f"{p}.write" for p in paths), f"{paths[-1]}.collapse"]
    if missing := [p for p in needed if not resolves(tree, p)]:
        raise VariantError(
            f"the stream that {name} widened is cut elsewhere in this capture", f"no module {missing[0]}",
            "name a mixer over positions before it, in one call: mode=[mixer, method]; else call as it was captured",
        )  # fmt: skip


def _place_stream(run: list[Step], paths: list[str], method: Method, tree: nn.Module) -> None:
    places = [dataclasses.replace(place_of(s.site, tree), depth=i, parallel=s.parallel) for i, s in enumerate(run)]
    stream = method.build_stream(places)
    place_module(tree, f"{paths[0]}.expand", stream.expand)
    for path, read, write in zip(paths, stream.reads, stream.writes, strict=True):
        if read is not None:
            place_module(tree, f"{path}.read", read)
        place_module(tree, f"{path}.write", write)
    place_module(tree, f"{paths[-1]}.collapse", stream.collapse)


def apply_depth(
    graph: fx.Graph, chosen: list[Site], streams: list[Stream], application: Application, tree: nn.Module
) -> list[str]:
    """Scope ``depth``: reads at the inputs of the chosen sublayers or blocks, stream by stream."""
    _forbid_claimed(chosen, application)
    method, first, asked, claimed = application.method, application.claimed is None, set(chosen), list[Site]()
    assert isinstance(method, DepthMethod)

    def bank(kind: str, site: Site, facts: dict[str, Any] | None) -> str:
        path = module_path(application, site, kind)
        if first and not resolves(tree, path):
            place = place_of(site, tree)
            if facts is not None:
                made: nn.Module | None = method.build(DepthPlace(**vars(place), **facts))
            else:
                made = {"shared": method.build_source, "ahead": method.build_ahead}[kind](place)
            if made is not None:
                place_module(tree, path, made)
        return path if resolves(tree, path) else ""

    for stream in streams:
        wanted = [s for s in stream.sites if s in asked]
        if not wanted:
            continue
        reason = rewrite_stream(graph, stream, wanted, method, bank, tree)
        if reason is None:
            claimed += wanted
            for site in wanted:
                site.reads = method.label
        elif first:
            remedy = "exclude= this stream, or take another method"
            application.skips += [Skip(s.owner, s.line, reason, remedy, node=s.node) for s in wanted]
    if not claimed:
        reasons = "; ".join(dict.fromkeys(s.reason for s in application.skips))
        raise NoSitesError(f"no stream to rewrite with {method.name}", reasons, "another method, or another model")
    return [s.name for s in claimed]


def _forbid_claimed(chosen: list[Site], application: Application) -> None:
    """A method that replaces adds wants them as they are; reads go beside a replaced add, but not beside two reads."""
    for site in chosen:
        scope = application.method.scope
        taken = site.reads if scope in ("depth", "wide") else ""
        if scope != "depth" or site.result is None:  # reads go beside a replaced add that still carries one stream
            taken = taken or site.method
        if taken:
            raise ConflictError(
                f"cannot rewrite {site.name} with {application.method.name}",
                f"{taken} rewrote it already", "use include= / exclude= so that each site has one method",
            )  # fmt: skip


# A scope is one function: (graph, chosen sites, streams, application, tree) -> names of the sites it claimed.
SCOPES = {"site": apply_site, "depth": apply_depth, "sequence": apply_sequence, "wide": apply_wide}


def choose(sites: list[Site], application: Application) -> list[Site]:
    """The sites that filters, forms and method leave; every other one becomes a skip with its reason."""
    named = [s for s in sites if _matches(s.owner, application)]
    asked = f"no residual add to rewrite with {application.method.name}"
    if not sites:
        raise NoSitesError(
            asked, "the model has no residual adds", "print(resfx.scan(model, ...)) lists every add and why"
        )
    if not named:
        owners = ", ".join(dict.fromkeys(s.owner or "(root)" for s in sites[:4]))
        raise NoSitesError(
            asked, f"include={list(application.include)} exclude={list(application.exclude)} leaves none of"
            f" {len(sites)} sites", f"globs over owner names, such as: {owners}",
        )  # fmt: skip
    chosen = []
    for site in named:
        reason = _refusal(site, application)
        if reason is None:
            chosen.append(site)
        else:
            application.skips.append(Skip(site.owner, site.line, *reason, node=site.node))
    if not chosen:
        reasons = "; ".join(dict.fromkeys(s.reason for s in application.skips))
        remedies = "; ".join(dict.fromkeys(s.remedy for s in application.skips if s.remedy))
        raise NoSitesError(asked, f"{len(named)} sites, each left alone: {reasons}", remedies)
    return chosen


def _matches(owner: str, application: Application) -> bool:
    def hit(globs: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(owner, g) for g in globs)

    return (not application.include or hit(application.include)) and not hit(application.exclude)


def _refusal(site: Site, application: Application) -> tuple[str, str] | None:
    """``(reason, remedy)`` if the method leaves a site alone."""
    if site.is_outer and "outer" not in application.forms:
        return "a long skip around whole blocks", "forms=(..., 'outer') takes these too"
    if site.form not in application.forms:
        return f"a {site.form} shortcut", f"forms=(..., {site.form!r}) takes these too"
    if site.width is None:
        return "the width of the stream is unknown: the graph has no shapes", "pass args=/kwargs="
    reason = application.method.refuse(place_of(site, None))
    return None if reason is None else (reason, "see the method's options")


def find_again(sites: list[Site], application: Application) -> list[Site]:
    """The sites that an earlier capture claimed, in this one."""
    by_name = {s.name: s for s in sites}
    assert application.claimed is not None
    found = [by_name[n] for n in application.claimed if n in by_name]
    missing = [n for n in application.claimed if n not in by_name]
    present = {s.owner for s in sites}
    broken = [n for n in missing if n.rsplit(":", 1)[0] in present]
    if broken or not found:
        raise VariantError(
            f"this call needs another capture, and {application.method.name} cannot act on it as before",
            f"residual adds not found again: {', '.join((broken or missing)[:4])}",
            "call the model as it was captured, or rewrite it with args= that match this call",
        )
    return found


def place_of(site: Site, tree: nn.Module | None) -> Place:
    """What a method may know of a site."""
    assert site.width is not None
    sizes = shape(site.context) if site.context is not None else None
    context = None
    if site.context is not None:
        context = hint(sizes[site.axis]) if sizes else site.width
    kind = dtype(site.context if site.context is not None else site.node)
    value = site.node.meta.get("val")
    parameter = next((p for p in tree.parameters() if p.is_floating_point()), None) if tree is not None else None
    fallback = parameter if parameter is not None else torch.empty(0)
    return Place(
        width=site.width, context_width=context, kind=site.kind, depth=site.depth, dtype=kind or fallback.dtype,
        device=value.device if isinstance(value, torch.Tensor) else fallback.device,
        block=site.block, rank=value.dim() if isinstance(value, torch.Tensor) else None,
    )  # fmt: skip


def module_path(application: Application, site: Site, kind: str = "add") -> str:
    """Where the module of a site lives in the model's tree."""
    owner = f"{site.owner}." if site.owner else ""
    return f"resfx.{application.key}.{owner}{kind}{site.order}"
