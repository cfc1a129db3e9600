"""Which values cross from stage to stage, and which a process keeps for its later stages.

A process that holds several stages has each value once: what an earlier stage of it received or made is kept for the
later ones, and crosses to them no more (Attention Residuals, arXiv 2603.15031, cross-stage caching). Where every stage
has a process of its own, nothing is kept, and a value crosses every border up to its last reader.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx

Values = list[fx.Node]


@dataclass(frozen=True)
class Borders:
    """What becomes of each value, in the order in which they are made.

    Attributes:
        sent: from each stage but the last to the next.
        kept: by each stage, for later ones of its process.
        recalled: by each stage, of what earlier ones of its process have kept.
        dropped: by each stage, of what it recalls: no later one does.
    """

    sent: list[Values]
    kept: list[Values]
    recalled: list[Values]
    dropped: list[Values]


def borders(
    made: Mapping[fx.Node, int], readers: Mapping[fx.Node, Collection[int]], stages: int, ranks: int
) -> Borders:
    """The fewest transfers by which every reader has each value; stage ``i`` is in process ``i % ranks``.

    Args:
        made: the stage that makes each value.
        readers: the stages that read it.
    """
    nothing = lambda: [Values() for _ in range(stages)]
    found = Borders(nothing(), nothing(), nothing(), nothing())
    for value, maker in made.items():
        first = {maker % ranks: maker}  # the first stage of each process that has it
        recalls: dict[int, int] = {}
        for reader in sorted(stage for stage in readers.get(value, ()) if stage > maker):
            at = reader
            while at % ranks not in first:
                at -= 1
            if at != first[at % ranks]:
                recalls[at] = first[at % ranks]
            for stage in range(at, reader):
                found.sent[stage].append(value)
                first[(stage + 1) % ranks] = stage + 1
        for stage in sorted(set(recalls.values())):
            found.kept[stage].append(value)
            found.dropped[max(at for at, kept in recalls.items() if kept == stage)].append(value)
        for stage in sorted(recalls):
            found.recalled[stage].append(value)
    return found
