"""Applying methods to a captured graph: the adds each claims, then the surgery of its scope."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx, nn

from resfx.errors import ConflictError
from resfx.passes.find.detect import Found
from resfx.passes.find.site import Site

from .application import Application
from .claim import claim
from .depth.scope import apply_depth
from .filters import refuse_idle_globs
from .route import apply_route
from .sequence.scope import apply_sequence
from .site import apply_site
from .surgery import Surgery, Turn
from .wide.scope import apply_wide

# A scope is one function: it changes the graph of a turn and returns the sites it claimed.
SCOPES: dict[str, Callable[[Turn], Sequence[Site]]] = {
    "site": apply_site, "depth": apply_depth, "route": apply_route, "sequence": apply_sequence,
    "wide": apply_wide,
}  # fmt: skip


# What acts inside the host's own branches goes first, mixers before routes: what replaces an add reads its result.
INSIDE = ("sequence", "route")


def apply_methods(graph: fx.Graph, tree: nn.Module, found: Found, applications: Sequence[Application]) -> Surgery:
    """Rewrite the graph of a fresh capture by a recipe; the first time the new modules are built into ``tree``.

    Args:
        found: what :func:`resfx.passes.find.detect.find_sites` found in it.

    Raises:
        NoSitesError, ConflictError, VariantError: as :func:`apply_method`.
    """
    surgery = Surgery(graph, tree, found.streams)
    order = lambda a: INSIDE.index(a.method.scope) if a.method.scope in INSIDE else len(INSIDE)
    for application in sorted(applications, key=order):
        apply_method(surgery, found.sites, application)
    graph.lint()
    return surgery


def apply_method(surgery: Surgery, sites: Sequence[Site], application: Application) -> None:
    """Rewrite the graph of one capture. The first time modules are built; later captures reuse them.

    Args:
        sites: all of the capture, as they were found.

    Raises:
        NoSitesError: if nothing is left to rewrite.
        ConflictError: if a site was claimed before.
        VariantError: if a later capture lacks a claimed site.
    """
    first = not application.is_built
    if first and sites and application.claimed is None:
        refuse_idle_globs(application.include, application.exclude, [s.owner for s in sites], surgery.tree)
    chosen, known = claim(sites, application)
    places = {site.name: place for site, place in known.items()}
    turn = Turn(surgery, application, surgery.now(chosen), places, first)
    _forbid_claimed(turn)
    done = SCOPES[application.method.scope](turn)
    if first:
        application.claimed = tuple(places[site.name] for site in done)


def _forbid_claimed(turn: Turn) -> None:
    """A method that replaces adds wants them as they are; reads go beside a replaced add, but not beside two reads."""
    surgery, scope = turn.surgery, turn.application.method.scope
    if scope in INSIDE:
        return
    replaced = surgery.replaced
    for site in turn.chosen:
        taken = surgery.method_at(site, "read") if scope in ("depth", "wide") else ""
        if scope != "depth" or replaced.get(site.name) is None:  # reads go where an add still carries one stream
            taken = taken or surgery.method_at(site, "replaced")
        if taken:
            raise ConflictError(
                f"cannot rewrite {site.name} with {turn.label}",
                f"{taken} rewrote it already", "use include= / exclude= so that each site has one method",
            )  # fmt: skip
