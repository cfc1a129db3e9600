"""Grouping sites into streams: the adds that hand one residual state from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from .draft import Draft, freeze
from .site import Site, Stream


def streams_of(drafts: Sequence[Draft]) -> tuple[list[Site], list[Stream]]:
    """The sites of drafts in graph order, and their streams in order of their first add.

    A stream ends where its state is projected or resampled: what follows has another basis, so it is another
    stream. Sites inside another site's branch form streams of their own.
    """
    by_root: dict[tuple[fx.Node, int], list[Draft]] = {}
    for draft in drafts:
        assert draft.root is not None
        by_root.setdefault((draft.root, draft.lane), []).append(draft)
    for number, members in enumerate(by_root.values()):
        _name_blocks(members)
        for depth, draft in enumerate(members):
            draft.stream, draft.depth = number, depth
    sites = freeze(drafts)
    groups: list[list[Site]] = [[] for _ in by_root]
    for site in sites:
        groups[site.stream].append(site)
    blocks = [tuple(dict.fromkeys(s.block for s in group)) for group in groups]
    return sites, [Stream(i, tuple(group), blocks[i], group[0].width) for i, group in enumerate(groups)]


def _name_blocks(sites: Sequence[Draft]) -> None:
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
