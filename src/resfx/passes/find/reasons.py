"""Why an add is not a residual one: what it is instead, as far as its surroundings tell."""

from __future__ import annotations

from torch import fx

from . import operators as ops
from .index import Index

INTEGER = "integer arithmetic"
BROADCAST = "operands of different shapes: a broadcast term"
BIAS = "a learned bias or position term, broadcast"
SCORES = "a mask or a relative bias, added to attention scores"
MASKS = "two masks, combined"
EMBEDDINGS = "a sum of embeddings: positions or token types"
CONSTANT = "one operand is the same for every input: a position, type or bias term"
ROTARY = "a rotary position term"
CUBIC = "the polynomial of a tanh-GELU"
GATE = "an interpolation between two values: a gate"
PYRAMID = "a feature pyramid: a lateral and an upsampled map"
BRANCHES = "a sum of branches of one tensor: experts, parallel convolutions or query-key terms"
NO_PATH = "neither operand was computed from the other: a sum of branches"
ELEMENTWISE = "the branch is elementwise: a polynomial, a gate or a recurrent update"
FOREIGN = "the shortcut only reaches the branch through another stream: a shared term added to it"
REINJECTED = "a state of before, added again to what a branch or a loop reads"
OPENS = "a term of a branch's input: the stream goes on without it"
QUERY = "the query of an attention, added to what it read and projected at once: it carries no stream"
MERGED = "several plain convolutions of one tensor, summed: re-parameterised as one"
NESTED_SCALED = "a scaled term inside another branch"
DEAD = "its value reaches no output"
OVERWRITTEN = "an in-place add whose overwritten operand is read again"
REVERSED = "the shortcut is subtracted: f(x) - x"
QUANTISED = "what a quantiser leaves over: x less its nearest code"
CELL = "one of the sums that a cell of a searched network concatenates"
MANY = "a shortcut and several branches in one sum"
JOINED = "states joined and summed with weights, or with more in one step: their terms cannot be told apart"
ROWS = "an add into some places of the state"
FUSED = "an add in one step with a product that stands in no tensor of its own"
LISTED = "an in-place add to a list of tensors"
FACTOR = "an add with a factor that is computed"
LERP = "an interpolation by a tensor: a gate"
UNTRACED = "a module whose inside cannot be traced, called as it is"

REMEDIES = {
    NO_PATH: "if it is residual, check that the branch starts from the same tensor as the shortcut",
    OVERWRITTEN: "write x = x + f instead of x += f",
    REVERSED: "write x - f(x), or let the branch carry the sign",
    MANY: "write x + f + g, or x + (f + g)",
    JOINED: "write a * x + b * f",
    ROWS: "write x + f, with f zero in the other places",
    FUSED: "compute the product, then add it: f = a @ b; x + f",
    LISTED: "write x + f for each",
    FACTOR: "write x + factor * f",
    LERP: "write x + w * (f - x)",
}
# Most differences, interpolations and products are no residual adds: a skip only where one looks like it.
SPELLED_OTHERWISE = {
    REVERSED,
    QUANTISED,
    MANY,
    JOINED,
    ROWS,
    FUSED,
    LISTED,
    FACTOR,
    LERP,
    OVERWRITTEN,
    MERGED,
    ELEMENTWISE,
}
_ONWARD = frozenset("add mul div where masked_fill sub maximum".split())


def explain(node: fx.Node, operands: list[fx.Node], reason: str, index: Index) -> str:
    """A closer reason for an add that was refused for ``reason``, or ``reason`` itself."""
    if reason in (INTEGER, OVERWRITTEN, MERGED, FOREIGN, DEAD):
        return reason
    ends = [index.strip_scaled(x)[0] for x in operands]
    if reason in (BROADCAST, CONSTANT, NO_PATH, ELEMENTWISE) and _feeds_softmax(node, index):
        return SCORES if any(index.role[x] in ("matmul", "weight") for x in _terms(ends, index)) else MASKS
    if any(index.name[x] == "embedding" for x in _terms(ends, index)) and reason in (CONSTANT, NO_PATH, BROADCAST):
        return EMBEDDINGS
    if reason == BROADCAST and any(index.parametric[x] for x in operands):
        return BIAS
    if reason in (NO_PATH, ELEMENTWISE):
        if any(index.role[x] == "upsample" for x in ends):
            return PYRAMID
        if _rotates(operands, index):
            return ROTARY
        if any(_complement(x, index) for x in operands):
            return GATE
        if _feeds(node, "tanh", index) and any(index.name[x] == "pow" for x in _terms(ends, index)):
            return CUBIC
    if reason == NO_PATH and _one_source(ends, index):
        return BRANCHES
    return reason


def _terms(ends: list[fx.Node], index: Index) -> list[fx.Node]:
    """The operands, and those of the adds that made them."""
    found: list[fx.Node] = []
    for x in ends:
        found.append(x)
        if index.name[x] in ("add", "mul", "layer_norm"):
            found += [index.strip_scaled(y)[0] for y in index.data[x]]
    return found


def _feeds(node: fx.Node, name: str, index: Index, steps: int = 6) -> bool:
    """Whether the value reaches an operator through rearranging, scaling, masking and adding alone."""
    for _ in range(steps):
        users = [u for u in node.users if index.name.get(u)]
        if any(index.name[u] == name for u in users):
            return True
        onward = [u for u in users if index.role[u] == "pass" or index.name[u] in _ONWARD]
        if not onward:
            return False
        node = onward[0]
    return False


def _feeds_softmax(node: fx.Node, index: Index) -> bool:
    if _feeds(node, "softmax", index):
        return True
    return any(index.name[u] in ops.ATTENTION and node in u.args[3:4] for u in node.users if index.name.get(u))


def _rotates(operands: list[fx.Node], index: Index) -> bool:
    """``x * cos + rotate(x) * sin``: both products share their source, one through a reordering of its halves."""
    left, right = (index.strip(x) for x in operands)
    if index.role[left] != "scale" or index.role[right] != "scale":
        return False
    (one, plain), (other, also_plain) = _sources(left, index), _sources(right, index)
    return bool(one & other) and plain != also_plain


def _sources(node: fx.Node, index: Index) -> tuple[set[fx.Node], bool]:
    """Tensors a product was made of, through a reordering of halves; and whether there was none."""
    found: set[fx.Node] = set()
    plain = True
    stack = [(x, 4) for x in index.data[node] if not index.parametric[x]]
    while stack:
        x, turns = stack.pop()
        x = index.strip(x)
        found.add(x)
        plain &= index.name[x] not in ("cat", "stack")
        if turns and (index.name[x] in ("cat", "stack", "neg", "mul", "getitem", "unbind", "chunk", "split")):
            stack += [(y, turns - 1) for y in index.data[x]]
    return {x for x in found if not index.constant[x]}, plain


def _complement(node: fx.Node, index: Index) -> bool:
    """Whether a product has the factor ``1 - z``."""
    node = index.strip(node)
    if index.role[node] != "scale":
        return False
    factors = [index.strip(x) for x in index.data[node]]
    return any(index.name[x] in ("rsub", "sub") and len(index.data[x]) == 1 for x in factors)


def _one_source(ends: list[fx.Node], index: Index) -> bool:
    """Whether both operands were computed from one tensor within a few weighted operators."""
    reached: list[set[fx.Node]] = []
    for x in ends:
        seen, front = {x}, [x]
        for _ in range(24):
            front = [z for y in front for z in index.data[y] if z not in seen and not index.constant[z]][:16]
            seen.update(front)
        reached.append(seen)
    return bool(reached[0] & reached[1])
