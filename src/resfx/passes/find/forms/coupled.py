"""Adds that only their surroundings explain: reversible blocks, sums of joined pieces, and sums that open a branch but
carry no stream.

A reversible block has two streams, each the other's input: ``y1 = x1 + f(x2)``, ``y2 = x2 + g(y1)``. An add of it
never reaches its own shortcut without passing an add of the other stream, which was itself computed from that
shortcut; that is how it is told from an add that merely takes in another stream's state.
"""

from __future__ import annotations

from resfx.passes.find.branches.features import opening_norm
from resfx.passes.find.draft import Draft
from resfx.passes.find.graph import same_shape
from resfx.passes.find.terms import Reading
from resfx.passes.find.walk import Walk


def coupled_form(walk: Walk, add: Reading) -> Draft | None:
    """``z1 = y1 + f(y2)`` where the last add of ``y2`` was computed from ``y1``."""
    state, branch = walk.index.strip(add.shortcut.value), add.branch.value
    own = walk.site_of.get(state)
    if own is None:
        return None
    partners = walk.between(state, branch).foreign
    if len(partners) != 1 or own is partners[0]:
        return None
    other = partners[0]
    there, here = walk.between(state, other.branch), walk.between(other.node, branch)
    if not (there.is_plain and here.is_plain):
        return None
    site = walk.draft(add, state, "identity", here, entry=other.node)
    site.lane = own.lane
    if walk.chain[other.node][0] is walk.chain[own.node][0] and other.lane == own.lane:
        other.lane = own.lane + 1  # both began at one tensor: x1 and x2 were the same
    other.inner = [s for s in other.inner if s is not own]
    if other.context is None:
        other.context = opening_norm(there.nodes, state, walk.index)
    return site


def first_of_pair(walk: Walk, second: Draft) -> Draft | None:
    """``y1 = x1 + f(x2)`` where ``x1, x2`` are parts of one tensor and ``second`` is ``y2 = x2 + g(y1)``."""
    index, start = walk.index, second.fork
    if index.role[start] != "part":
        return None
    whole = index.data[start][0]
    for node in walk.between(start, second.branch).nodes:
        for add in walk.sums[node].readings() if node in walk.sums and node not in walk.site_of else ():
            state = index.strip(add.shortcut.value)
            if index.role[state] != "part" or index.data[state][0] is not whole or state is start:
                continue
            found, rest = walk.between(start, add.branch.value), walk.between(node, second.branch)
            if found.is_plain and rest.is_plain and len(index.onward(node)) > 1:
                second.context = second.context or opening_norm(rest.nodes, node, index)
                return walk.draft(add, state, "identity", found, entry=start)
    return None


def joined_form(walk: Walk, add: Reading) -> Draft | None:
    """``cat(x1, x2) + cat(f1, f2)``: pieces of a state and what was computed from each, joined before the add."""
    index = walk.index
    states, results = index.strip(add.shortcut.value), index.strip(add.branch.value)
    if index.name[states] != "cat" or index.name[results] != "cat" or states.args[1:] != results.args[1:]:
        return None
    lefts, rights = (list(n.args[0]) for n in (states, results))  # type: ignore[arg-type]
    if len(lefts) != len(rights) or not all(same_shape(a, b) for a, b in zip(lefts, rights, strict=True)):
        return None
    found = [walk.between(index.strip(a), b) for a, b in zip(lefts, rights, strict=True)]
    if not all(f.reached and f.weighted for f in found):
        return None
    last = max(range(len(lefts)), key=lambda i: index.position[index.strip(lefts[i])])
    return walk.draft(add, index.strip(lefts[last]), "identity", found[last])


def only_opens(walk: Walk, site: Draft, outer: Draft) -> bool:
    """Whether ``site`` is a term of what the branch of ``outer`` reads, and no state of the stream.

    Nothing but the norm that opens the branch reads it, or the branch reads the state without it too (as attention
    does whose values have no positions) and no other add goes on from it.
    """
    index = walk.index
    if _is_term(walk, site, outer):
        return True
    readers = index.onward(site.node)
    norms = [n for n in readers if index.role[n] == "norm"]
    if site.fork is not outer.fork or len(norms) != 1 or len(outer.inner) != 1:
        return False
    seen, stack = set(norms), [norms[0]]
    while stack:  # a norm written out reads its state twice: for the statistic too
        for x in index.data[stack.pop()]:
            if x not in seen and index.position[x] > index.position[site.node]:
                seen.add(x)
                stack.append(x)
    return all(n in seen for n in readers)


def _is_term(walk: Walk, site: Draft, outer: Draft) -> bool:
    """Whether the branch of ``outer`` reads the state with ``site`` and without, and nothing else reads ``site``."""
    index, fork = walk.index, outer.fork
    if site.fork is not fork or site.node in walk.forks:
        return False
    past = index.leads(fork, outer.branch, avoiding=site.node)
    return past and not index.leads(site.node, outer.shortcut, avoiding=fork)
