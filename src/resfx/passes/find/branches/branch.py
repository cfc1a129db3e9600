"""One residual add's branch, taken apart: its attention, the state it starts from, and what opens each of its parts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from resfx.passes.find.graph import hint, outermost, owner, same_shape, shape
from resfx.passes.find.index import Index
from resfx.passes.find.site import Site, Stream

from .attention import Attention, branch_region, find_attention, positions_along
from .features import is_norm_output, norm_output

NO_MLP = "no MLP in this branch"


class Branch:
    """One site's branch, taken apart once per application.

    Attributes:
        region: the nodes between the fork and the add.
        attention: the self-attention, or why there is none to act on.
        siblings: sites of other branches of the same add, in a parallel block.
        fork: the last state that the shortcut and the branch share.
    """

    def __init__(self, site: Site, stream: Stream, index: Index) -> None:
        self.site, self.index = site, index
        self.region = branch_region(site, index)
        self.attention = find_attention(site, self.region, index)
        self.siblings = [s for s in stream.sites if s is not site and s.fork is site.fork and s.form == "parallel"]
        self.fork = self._last_common()

    @property
    def found(self) -> Attention | None:
        """The attention, if there is one to act on."""
        return self.attention if isinstance(self.attention, Attention) else None

    def _last_common(self) -> fx.Node:
        """The state that both shortcut and branch read: the fork, or further down through casts and dropout."""
        index, chain, node = self.index, [], self.site.shortcut
        while node is not self.site.fork and index.role[node] == "pass" and index.data[node]:
            chain.append(node)
            node = index.data[node][0]
        for node in chain:
            below = self._between(node)
            if self.site.fork not in below and not any(x in below for x in chain[chain.index(node) + 1 :]):
                return node
        return self.site.fork

    def _between(self, stop: fx.Node) -> set[fx.Node]:
        found, stack = {self.site.branch}, [self.site.branch]
        while stack:
            node = stack.pop()
            fresh = [x for x in node.all_input_nodes if x is not stop and x not in found]
            found.update(x for x in fresh if x is self.site.fork or x in self.region)
            stack.extend(x for x in fresh if x in self.region)
        return found

    def readers(self, node: fx.Node, ends: Iterable[fx.Node]) -> set[fx.Node]:
        """The users of a node through which it reaches one of ``ends``."""
        start = self.index.position[node]
        back = set(ends)
        stack = list(back)
        while stack:
            for x in stack.pop().all_input_nodes:
                if x not in back and self.index.position.get(x, start) > start:
                    back.add(x)
                    stack.append(x)
        return {u for u in node.users if u in back}

    def entries(self, ends: Iterable[fx.Node]) -> list[fx.Node]:
        """Where the way to ``ends`` begins: the outputs of norms of the fork, or the fork where no norm opens."""
        index = self.index
        norms = [n for n in self.region if index.role[n] == "norm" and index.strip(index.data[n][0]) is self.site.fork]
        outputs = [outermost(norm_output(n, index)) for n in sorted(norms, key=index.position.__getitem__)]
        found = [o for o in dict.fromkeys(outputs) if self.readers(o, ends)]
        return found or [self.fork]

    def first_of_mlp(self) -> list[fx.Node] | str:
        """The weighted nodes that open the MLP."""
        index, attention = self.index, self.found
        if attention is None and self.site.kind != "mlp":
            return NO_MLP
        skip = set() if attention is None else self._tied_to(attention)
        weighted = [n for n in self.region if index.role[n] == "weight" and n not in skip]
        entries = self.entries(weighted)
        opened = {index.strip(e) for e in entries} | {index.strip(self.fork)}
        first = [n for n in weighted if any(index.strip(x) in opened for x in index.data[n])]
        return sorted(first, key=index.position.__getitem__) or NO_MLP

    def _tied_to(self, attention: Attention) -> set[fx.Node]:
        """The nodes of the region before or after the attention."""
        core = attention.core
        stack = [core, attention.query, attention.key, attention.value]
        before = set(stack)
        while stack:
            fresh = [x for x in self.index.data[stack.pop()] if x in self.region and x not in before]
            before.update(fresh)
            stack.extend(fresh)
        after = {core}
        for node in sorted(self.region, key=self.index.position.__getitem__):
            if any(x in after for x in self.index.data[node]):
                after.add(node)
        entries = {norm_output(n, self.index) for n in before if self.index.role[n] == "norm"}
        return (before | after) - entries

    def rows_of(self, node: fx.Node) -> fx.Node | None:
        """A projection's output as the stream lies, with features where it has them, through at most two views."""
        stream, axis = shape(self.site.node), self.site.axis
        for _ in range(3):
            sizes = shape(node)
            if sizes is not None and stream is not None and len(sizes) == len(stream):
                along = zip(positions_along(sizes, axis), positions_along(stream, axis), strict=True)
                return outermost(node) if all(hint(a) == hint(b) for a, b in along) else None
            users = [u for u in node.users if self.index.role[u] == "pass"]
            if len(users) != 1:
                return None
            node = users[0]
        return None

    def axis_of(self, node: fx.Node) -> int | None:
        """Which axis of a node that opens the branch has the features: the stream's, or the last where positions were
        made one axis; ``None`` where that cannot be told."""
        sizes, stream, axis = shape(node), shape(self.site.node), self.site.axis
        if axis == -1 or sizes is None or stream is None or same_shape(node, self.site.node):
            return axis
        positions = math.prod(hint(n) or 0 for n in positions_along(stream, axis))
        lies = [hint(n) for n in sizes[1:]]
        ways = {-1: [positions, self.site.width], 1: [self.site.width, positions]}
        found = [a for a, way in ways.items() if lies == way]
        return found[0] if len(found) == 1 else None

    def norm(self, tree: nn.Module) -> nn.Module | None:
        """The norm that opens the branch, the host's own; ``None`` where the fork is a norm's output already.

        A norm written out in a block's own code has no module, and that of a stream whose features are not last takes
        other axes than a mixer's: their place takes a fresh root-mean-square norm.
        """
        context = self.site.context
        if context is None or context is self.site.fork or is_norm_output(self.site.fork, self.index):
            return None
        if self.site.axis != -1:
            return nn.RMSNorm(self.site.width or 1)
        module = tree.get_submodule(owner(context))
        if type(module).forward is nn.Module.forward:  # an exported program keeps parameters, not code
            return self._norm_of_operator(context, module)
        if not list(module.children()) and 1 <= len(list(module.parameters())) <= 2:
            return module
        return nn.RMSNorm(self.site.width or 1)

    def _norm_of_operator(self, context: fx.Node, module: nn.Module) -> nn.Module:
        """The module of a norm that is one operator, over a copy of its parameters; else a fresh one."""
        width, name = self.site.width or 1, self.index.name[context]
        if name not in ("layer_norm", "rms_norm"):
            return nn.RMSNorm(width)
        eps: Any = next((a for a in context.args if isinstance(a, float)), None)
        norm = nn.RMSNorm(width, eps) if name == "rms_norm" else nn.LayerNorm(width, 1e-5 if eps is None else eps)
        with torch.no_grad():
            for part, parameter in module.named_parameters():
                norm.get_parameter(part).copy_(parameter)
        return norm
