"""Grouping sites into streams: the adds that hand one residual state from one to the next."""

from __future__ import annotations

from torch import fx

from .site import Site, Stream


def find_streams(sites: list[Site]) -> list[Stream]:
    """Streams in order of their first add. Sets ``stream`` and ``block`` of every site.

    A stream ends where its state is projected or resampled: what follows has another basis, so it is another
    stream. Sites inside another site's branch form streams of their own.
    """
    by_root: dict[tuple[fx.Node, int], list[Site]] = {}
    for site in sites:
        assert site.root is not None
        by_root.setdefault((site.root, site.lane), []).append(site)
    streams = []
    for number, ((root, _), members) in enumerate(by_root.items()):
        _name_blocks(members)
        for site in members:
            site.stream = number
        blocks = list(dict.fromkeys(s.block for s in members))
        first = members[0]
        entry = first.shortcut if first.form in ("projection", "resampled") else root
        streams.append(Stream(number, members, entry, members[-1].node, blocks, first.width))
    return streams


def _name_blocks(sites: list[Site]) -> None:
    """The block of a site: its owner's name up to the first number that differs along the stream."""
    paths = [s.owner.split(".") for s in sites]
    for i in range(max(len(p) for p in paths)):
        parts = {p[i] if i < len(p) else "" for p in paths}
        if len(parts) > 1 and all(p.isdigit() for p in parts if p):
            for site, path in zip(sites, paths, strict=True):
                site.block = ".".join(path[: i + 1])
            return
    for site in sites:
        site.block = site.owner
