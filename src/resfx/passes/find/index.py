"""One linear walk over a graph that answers what the detector asks of it again and again."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx, nn

from . import operators as ops
from .graph import dtype, shape
from .mark import mark_of

_VIEWS = frozenset(
    "view reshape permute transpose swapaxes t squeeze unsqueeze slice expand select narrow unflatten flatten alias"
    " getitem chunk split unbind detach movedim".split()
)

_ZEROS = frozenset("zeros zeros_like new_zeros".split())
_RANDOM = frozenset("randn randn_like rand rand_like normal bernoulli".split())


@dataclass
class Index:
    """Facts about every node of a graph, each computed once.

    Attributes:
        position: place in the graph.
        name: see :func:`operators.operator_name`.
        data: operands whose *values* reach the node, newest in-place write applied.
        constant: the node depends on no user input and no chance (parameters, positions, literals).
        role: ``weight``, ``norm``, ``pool``, ``upsample``, ``matmul``, ``pass``, ``part``, ``act``,
            ``scale`` or ``""``. A part is one piece of a split tensor: the pieces are different tensors.
        newest: operands that an in-place write had changed by the time a node read them, as ``(reader, operand)``,
            and the writer.
        observed: in-place writers whose effect is read through another name of the tensor.
        alive: nodes whose value reaches an output, or something that outlives the call.
    """

    graph: fx.Graph
    root: nn.Module | None = None
    nodes: list[fx.Node] = field(default_factory=list)
    position: dict[fx.Node, int] = field(default_factory=dict)
    name: dict[fx.Node, str] = field(default_factory=dict)
    data: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    constant: dict[fx.Node, bool] = field(default_factory=dict)
    parametric: dict[fx.Node, bool] = field(default_factory=dict)
    role: dict[fx.Node, str] = field(default_factory=dict)
    newest: dict[tuple[fx.Node, fx.Node], fx.Node] = field(default_factory=dict)
    observed: set[fx.Node] = field(default_factory=set)
    alive: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        base: dict[fx.Node, fx.Node] = {}  # view -> the tensor it looks into
        newest: dict[fx.Node, fx.Node] = {}  # tensor -> its last in-place writer
        for i, node in enumerate(self.graph.nodes):
            self.nodes.append(node)
            self.position[node] = i
            name = self.name[node] = ops.operator_name(node, self.root)
            inputs = self._data_inputs(node, name)
            resolved = []
            for x in inputs:
                writer = newest.get(base.get(x, x))
                if writer is not None and writer is not x and self.position[writer] > self.position[x]:
                    self.observed.add(writer)
                    self.newest[node, x] = writer
                    resolved.append(writer)
                    if base.get(x, x) is not x or not ops.is_inplace(writer):
                        resolved.append(x)
                else:
                    resolved.append(x)
            if name == "sub" and len(resolved) == 2 and self._averaged(resolved[1], resolved[0]):
                resolved = resolved[:1]  # a state less its own average is that state, centred
            if name == "add" and len(resolved) == 2 and any(self.name[x] in _ZEROS for x in resolved):
                resolved = [x for x in resolved if self.name[x] not in _ZEROS]
            self.data[node] = resolved
            if name in _VIEWS and inputs:
                base[node] = base.get(inputs[0], inputs[0])
            if ops.is_inplace(node) and inputs:
                written = inputs[:1] if not isinstance(node.args[0], (list, tuple)) else list(node.args[0])
                for x in written:  # a list of tensors is written by the operators on lists
                    newest[base.get(x, x)] = node
                base[node] = base.get(inputs[0], inputs[0])
            self.constant[node] = (
                all(self.constant[x] for x in resolved)
                if node.op not in ("placeholder", "get_attr") and name not in _RANDOM
                else node.op == "get_attr" or mark_of(node).lifted
            )
            self.parametric[node] = node.op == "get_attr" or (
                node.op != "placeholder" and bool(resolved) and all(self.parametric[x] for x in resolved)
            )
            self.role[node] = self._role(node, name, resolved)
            if name in ("mul", "div"):
                self._recognise_norm(node)
        lasting = [n for n, b in base.items() if b.op in ("placeholder", "get_attr") and ops.is_inplace(n)]
        stack = [n for n in self.nodes if n.op == "output"] + lasting
        while stack:
            if (node := stack.pop()) not in self.alive:
                self.alive.add(node)
                stack += self.data[node]

    def _recognise_norm(self, node: fx.Node) -> None:
        """``x * rsqrt(mean(x**2) + eps)`` and ``(x - mean) / sqrt(var + eps)`` are norms, written out."""
        if len(self.data[node]) != 2:
            return
        for x, statistic in (self.data[node], self.data[node][::-1]):
            source = self._statistic_of(statistic)
            if source is None:
                continue
            value = self._uncentred(x)
            if value is self._uncentred(source):
                self.role[node] = "norm"
                self.data[node] = [value, statistic]
                return

    def _averaged(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a tensor is an average of ``source``: over a window, padded or not, or over an axis."""
        source, stack, seen = self.strip(source), [node], set[fx.Node]()
        while stack:
            x = self.strip(stack.pop())
            if x is source or x in seen:
                continue
            seen.add(x)
            inputs = [y for y in self.data[x] if not self.constant[y]]
            averages = self.role[x] == "pool" or self.name[x] in ("cat", "repeat", "mean", "pad")
            if not averages or not inputs or len(seen) > 24:
                return False
            stack += inputs
        return bool(seen)

    def _uncentred(self, node: fx.Node) -> fx.Node:
        """What a tensor was before its mean was taken off."""
        node = self.strip(node)
        return self.strip(self.data[node][0]) if self.name[node] == "sub" and self.data[node] else node

    def _statistic_of(self, node: fx.Node) -> fx.Node | None:
        """The tensor whose mean square or variance a node is the (inverse) root of."""
        met_root = met_mean = False
        for _ in range(10):
            name, inputs = self.name[node], self.data[node]
            if not inputs:
                return None
            met_root |= name in ("rsqrt", "sqrt") or (name == "pow" and not met_mean)
            if name == "var" or (name in ("pow", "square", "mul") and met_mean):
                return self.strip(inputs[0]) if met_root else None
            met_mean |= name == "mean"
            if name not in ("rsqrt", "sqrt", "add", "mean", "reciprocal", "pow", "clamp") and self.role[node] != "pass":
                return None
            node = inputs[0]
        return None

    def _data_inputs(self, node: fx.Node, name: str) -> list[fx.Node]:
        if name in ops.SHAPE_ONLY or node.op in ("placeholder", "get_attr"):
            return []
        inputs = [x for x in node.all_input_nodes if self.is_tensor(x)]
        if name in ops.FIRST_ONLY and node.args and isinstance(node.args[0], fx.Node):
            return [node.args[0]]
        return inputs

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether a node's value is a tensor, and not a size or a number."""
        if "val" in node.meta:
            return not isinstance(node.meta["val"], (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool))
        return self.name.get(node) not in ops.SHAPE_ONLY

    def _role(self, node: fx.Node, name: str, inputs: list[fx.Node]) -> str:
        if name == "getitem" and inputs and self.name[inputs[0]] in ops.PARTS:
            return "part"
        if name == "getitem" and inputs and self.name[inputs[0]] in ("_foreach_add", "_foreach_sub"):
            return ""  # one of the sums
        if name == "add" and len(inputs) == 1 and self._adds_nothing(node):
            return "pass"  # 0 + x, as Python's sum begins
        if name in ops.PASS or (name == "index" and inputs and not self.constant[inputs[0]]):
            return "pass"
        if name in ops.WEIGHTED or name == "weighted_module":
            return "weight"
        if name in ops.MATMUL:
            return "weight" if any(self.parametric[x] for x in inputs) else "matmul"
        if name in ops.NORM:
            return "norm"
        if name in ops.POOL:
            return "pool"
        if name in ops.UPSAMPLE:
            return "upsample"
        if name in ops.ATTENTION:
            return "matmul"
        if name in ops.ACTIVATION:
            return "act"
        return "scale" if name in ops.SCALE else ""

    def _adds_nothing(self, node: fx.Node) -> bool:
        """Whether an add of one tensor has zero for its other operand."""
        return any(self.name[a] in _ZEROS if isinstance(a, fx.Node) else a == 0 for a in node.args)

    def is_weighted(self, node: fx.Node) -> bool:
        """Whether the node mixes features with learned weights, normalises with them, pools or transforms."""
        return self.role[node] in ("weight", "norm", "pool")

    def is_attention(self, node: fx.Node, scored: bool) -> bool:
        """Whether the node mixes positions by scores.

        Args:
            scored: an operand was computed from a softmax.
        """
        return self.name[node] in ops.ATTENTION or (scored and self.role[node] == "matmul")

    def carries(self, node: fx.Node) -> bool:
        """Whether a value comes through the node, and not only a position, a choice or a comparison."""
        kind = dtype(node)
        return kind is None or kind.is_floating_point or kind.is_complex

    def chooses(self, node: fx.Node) -> bool:
        """Whether the node gives places, as ``argmin`` does."""
        kind = dtype(node)
        return kind is not None and kind is not torch.bool and not self.carries(node)

    def strip(self, node: fx.Node) -> fx.Node:
        """Up through operators that only rearrange, cast or drop, to the node that carries the value."""
        gathered = False
        while self.data[node] and (self.role[node] == "pass" or (gathered and self.name[node] == "index_put")):
            gathered |= self.name[node] == "index"  # rows of a tensor in which other rows were replaced
            node = self.data[node][0]
        return node

    def _biased(self, node: fx.Node) -> bool:
        """Whether an add has a parameter for an operand."""
        return len(self.data[node]) == 2 and any(self.parametric[x] for x in self.data[node])

    def rows(self, node: fx.Node) -> fx.Node | None:
        """The gather by which a node is some rows of a tensor (``x[mask]``), if it is."""
        while self.role[node] == "pass" and self.data[node]:
            if self.name[node] == "index":
                return node
            node = self.data[node][0]
        return None

    def read(self, node: fx.Node, operand: fx.Node) -> fx.Node:
        """The operand as the node reads it: after the last in-place write, if there was one."""
        return self.newest.get((node, operand), operand)

    def strip_scaled(self, node: fx.Node) -> tuple[fx.Node, bool]:
        """Like :meth:`strip`, also through multiplication by a literal or a parameter; whether one was met. Behind
        one, a parameter may be added too: ``(x + b) * a``."""
        scaled = False
        while True:
            node = self.strip(node)
            varying = [x for x in self.data[node] if not self.constant[x]]
            if scaled and self.name[node] == "add" and len(varying) == 1 and self._biased(node):
                node = varying[0]
                continue
            if self.role[node] != "scale":
                return node, scaled
            if len(varying) != 1 or (
                len(self.data[node]) > 1 and self.name[node] == "div" and node.args[0] is not varying[0]
            ):
                return node, scaled
            node, scaled = varying[0], True

    def onward(self, node: fx.Node) -> list[fx.Node]:
        """The operators that read a value, through those that only rearrange or cast it."""
        found, stack = [], [node]
        while stack:
            for user in stack.pop().users:
                if user in self.alive and self.role.get(user) == "pass":
                    stack.append(user)
                elif user in self.alive:
                    found.append(user)
        return found

    def leads(self, start: fx.Node, end: fx.Node, avoiding: fx.Node) -> bool:
        """Whether ``end`` is computed from ``start`` on a way that avoids a node."""
        stack, seen = [end], {end, avoiding}
        while stack:
            for x in self.data[stack.pop()]:
                if x is start:
                    return True
                if x not in seen and self.position[x] > self.position[start]:
                    seen.add(x)
                    stack.append(x)
        return False

    def rank(self, node: fx.Node) -> int | None:
        """Number of dimensions, if known."""
        sizes = shape(node)
        return None if sizes is None else len(sizes)
