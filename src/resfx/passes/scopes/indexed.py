"""The index of a graph that methods have acted on."""

from __future__ import annotations

from torch import fx, nn

from resfx.methods.sequence.mixer import Mixer
from resfx.passes.find.index import Index
from resfx.passes.find.mark import mark_of


def index_of(graph: fx.Graph, tree: nn.Module) -> Index:
    """The graph's index; mixers and routes of earlier rewrites count as operators that hand their input on."""
    index = Index(graph, tree)
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        if mark_of(node).scope == "route":
            index.role[node], index.data[node] = "pass", [node.args[1]]
        elif isinstance(tree.get_submodule(str(node.target)), Mixer):
            index.role[node] = "pass"
    return index
