"""Where in a branch the mixers of a method go: what each reads, and which readers get the mixed tensor instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from resfx.passes.find.branches.attention import NOT_ROWS, WINDOWED, ready_to_rotate
from resfx.passes.find.branches.branch import Branch
from resfx.passes.find.branches.projected import FLAT, UNPROJECTED, projected
from resfx.passes.find.graph import same_shape

ALIKE = "as many features as positions, in a branch that turns them: which axis is which cannot be told"
EXPERTS = "a mixture of experts: its hidden features are not a sequence"
_ROUTERS = frozenset(
    ["topk", "_grouped_mm", "grouped_mm", "index_add", "scatter", "scatter_add", "one_hot", "nonzero", "sort"]
)


@dataclass
class Point:
    """One mixer's place in the graph.

    Attributes:
        label: the last part of the mixer's path.
        point: its name among a method's ``points``.
        node: what the mixer reads.
        readers: the users of ``node`` that get the mixed tensor.
        layout: how ``node`` lies, see :class:`resfx.methods.sequence.mixer.Mixer`. Positions on several axes, the rows
            and columns of an image, are handed over as one.
        axis: of the features, where they are not the last of ``"btc"``.
        residual: the readers get the sum of the node and the mixer's output.
    """

    label: str
    point: str
    node: fx.Node
    readers: set[fx.Node]
    layout: str = "btc"
    axis: int = -1
    residual: bool = False


def points_of(branch: Branch, names: Sequence[str]) -> tuple[list[Point], list[str]]:
    """The places for mixers that a branch has, and why it lacks the others."""
    found: list[Point] = []
    reasons: list[str] = []
    on = [n for n in names if n in ("q", "k", "v")]
    for name in dict.fromkeys("qkv" if n in on else n for n in names):
        got = _projections(branch, on) if name == "qkv" else _FINDERS[name](branch)
        if isinstance(got, str):
            reasons.append(got)
        else:
            found += got
    return found, reasons


def _stream(branch: Branch) -> list[Point] | str:
    if isinstance(branch.attention, str):
        return branch.attention
    if same_shape(branch.fork, branch.site.node) is False:
        return NOT_ROWS
    ends = [branch.site.node, *(s.node for s in branch.siblings)]
    return [Point("swa", "stream", branch.fork, branch.readers(branch.fork, ends), axis=branch.site.axis,
                  residual=True)]  # fmt: skip


def _attention(branch: Branch) -> list[Point] | str:
    if isinstance(branch.attention, str):
        return branch.attention
    operands = (branch.attention.query, branch.attention.key, branch.attention.value)
    return _opening("a", "attention", branch, operands)


def _projections(branch: Branch, wanted: list[str]) -> list[Point] | str:
    if isinstance(branch.attention, str):
        return branch.attention
    if branch.attention.windowed:
        return WINDOWED
    projections = branch.attention.projections
    if len(projections) < 3:
        return UNPROJECTED
    if len(wanted) == 3 and len(set(projections.values())) == 1:
        return _fused(branch, projections["q"])
    found = []
    for name in wanted:
        got = projected(branch, name, behind=False)
        if isinstance(got, str):
            return got
        found.append(Point(name, name, got.node, set(got.node.users), got.layout))
    return found


def _fused(branch: Branch, projection: fx.Node) -> list[Point] | str:
    """One mixer for queries, keys and values that come from one projection."""
    node, swapped = ready_to_rotate(projection, branch.region, branch.index)
    if branch.index.rank(node) == 4:
        return [Point("qkv", "qkv", node, set(node.users), "bhtd" if swapped else "bthd")]
    rows = branch.rows_of(node)
    return FLAT if rows is None else [Point("qkv", "qkv", rows, set(rows.users), axis=branch.site.axis)]


def _mlp(branch: Branch) -> list[Point] | str:
    first = branch.first_of_mlp()
    return first if isinstance(first, str) else _opening("c", "mlp", branch, first)


def _hidden(branch: Branch) -> list[Point] | str:
    first = branch.first_of_mlp()
    if isinstance(first, str):
        return first
    if any(branch.index.name[n] in _ROUTERS for n in branch.region):
        return EXPERTS
    rows = [branch.rows_of(n) for n in first]
    if any(r is None for r in rows):
        return FLAT
    axis = branch.site.axis
    return [Point(f"d{i}", "hidden", r, set(r.users), axis=axis) for i, r in enumerate(rows) if r is not None]


def _opening(label: str, point: str, branch: Branch, ends: Iterable[fx.Node]) -> list[Point] | str:
    """What leads to ``ends``, after the norm that opens the branch."""
    for entry in branch.entries(ends)[:1]:
        axis = branch.axis_of(entry)
        return ALIKE if axis is None else [Point(label, point, entry, branch.readers(entry, ends), axis=axis)]
    return []


_FINDERS: dict[str, Callable[[Branch], list[Point] | str]] = {
    "stream": _stream, "attention": _attention, "mlp": _mlp, "hidden": _hidden,
}  # fmt: skip
