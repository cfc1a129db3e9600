"""Which residual adds a method acts on: chosen once by filters, forms and the method, found again ever after."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence

from resfx.errors import NoSitesError, VariantError
from resfx.passes.find.site import Site, Skip
from resfx.passes.find.standing import Sought, Standing, standings_of

from .application import Application
from .places import place_at
from .surgery import reasons_of, remedies_of

Places = dict[Site, Standing]
"""Sites of this capture, each with the place under which the application knows it."""


def claim(sites: Sequence[Site], application: Application) -> tuple[list[Site], Places]:
    """The sites of one capture that an application acts on, and all that it knows.

    Args:
        sites: all of the capture, as they were found.

    Raises:
        NoSitesError: if nothing is left to rewrite.
        VariantError: if adds that the application claimed are not found again, or not for sure.
    """
    if application.claimed is None:
        chosen, places = choose(sites, application), dict(zip(sites, standings_of(sites), strict=True))
    elif not application.is_built:
        chosen, places = _find_saved(sites, application, application.claimed)
    else:
        chosen, places = _find_again(sites, application, application.claimed)
        _warn_of_new([s for s in sites if s not in places], application)
    application.seen = application.seen or tuple(places.values())
    return chosen, places


def choose(sites: Sequence[Site], application: Application) -> list[Site]:
    """The sites that filters, forms and method leave; every other one becomes a skip with its reason."""
    named = [s for s in sites if _matches(s.owner, application)]
    asked = f"no residual add to rewrite with {application.method.label}"
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
    chosen = _sift(named, application)
    if not chosen:
        skips = application.skips
        raise NoSitesError(asked, f"{len(named)} sites, each left alone: {reasons_of(skips)}", remedies_of(skips))
    return chosen


def _sift(sites: Sequence[Site], application: Application) -> list[Site]:
    """The sites that the method takes; every other one becomes a skip."""
    taken = []
    for site in sites:
        reason = _refusal(site, application)
        if reason is None:
            taken.append(site)
        else:
            application.skips.append(Skip(site.owner, site.line, *reason, node=site.node))
    return taken


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
    reason = application.method.refuse(place_at(site, None))
    return None if reason is None else (reason, "see the method's options")


def _find_again(
    sites: Sequence[Site], application: Application, claimed: Sequence[Standing]
) -> tuple[list[Site], Places]:
    """The adds that an earlier capture claimed; those of modules that this one does not call at all may be missing."""
    sought = Sought(sites)
    found = {place: sought.find(place) for place in claimed}
    lost = [p.name for p, site in found.items() if site is None and p.owner in sought.owners]
    there = [site for site in found.values() if site is not None]
    if lost or not there:
        raise VariantError(
            f"this call needs another capture, and {application.method.label} cannot act on it as before",
            "residual adds not found again, or not as many of one kind:"
            f" {', '.join((lost or [p.name for p in claimed])[:4])}",
            "call the model as it was captured, or rewrite it with args= that match this call",
        )
    return there, {site: place for place in application.seen if (site := sought.find(place)) is not None}


def _warn_of_new(sites: Sequence[Site], application: Application) -> None:
    """Say so where a call runs adds that the method would have taken, had the first capture shown them."""
    fresh = [s for s in sites if _matches(s.owner, application) and _refusal(s, application) is None]
    if fresh:
        warnings.warn(
            f"this call runs residual adds that were not there when {application.method.label} was applied: they stay"
            f" as they are ({', '.join(s.name for s in fresh[:4])})",
            stacklevel=2,
        )


def _find_saved(
    sites: Sequence[Site], application: Application, claimed: Sequence[Standing]
) -> tuple[list[Site], Places]:
    """The adds that a recipe names, in a source that may have moved since it was saved."""
    found = Sought(sites).find_moved(claimed)
    lost = [p.name for p, site in found.items() if site is None]
    if lost:
        raise VariantError(
            f"cannot apply {application.method.label} as it was saved",
            f"residual adds not found again, or not for sure: {', '.join(lost[:4])}",
            "load with args= of the call it was rewritten with, and the model's library as it was",
        )
    _sift([s for s in sites if _matches(s.owner, application)], application)
    known = {site: place for place, site in found.items() if site is not None}
    taken = {place.name for place in claimed}
    places = {}
    for site, place in zip(sites, standings_of(sites), strict=True):
        if site in known:
            places[site] = place.known_as(known[site])
        elif place.name not in taken:  # the number of another add, where adds came since
            places[site] = place
    return list(known), places
