"""A rewritten call as one flat function, what mixers keep among its inputs and outputs: what export targets take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from resfx.errors import CaptureError
from resfx.passes.capture.marking.record import enter, keep, leave
from resfx.passes.capture.trace import Capture
from resfx.passes.capture.untraced import UNTRACED
from resfx.passes.find.detect import find_sites
from resfx.passes.fold.whole import function_of
from resfx.passes.scopes.application import Application
from resfx.passes.scopes.apply import apply_methods

from .states import thread_states


@dataclass(eq=False)
class FlatCall:
    """One rewritten call of a model.

    Attributes:
        capture: its graph.
        run: the graph as a function of the module tree and its inputs.
    """

    capture: Capture
    run: Callable[..., Any]


def flat_call(capture: Capture, tree: nn.Module, applications: Sequence[Application]) -> FlatCall:
    """Rewrite a fresh capture by a recipe whose modules stand in ``tree``, and leave it one graph.

    Raises:
        CaptureError: if a module's inside cannot be traced.
    """
    if (node := next((n for n in capture.graph.nodes if n.target is UNTRACED), None)) is not None:
        raise CaptureError(
            f"cannot take {type(tree).__name__} as one graph", f"{node.args[1]} cannot be traced: {node.args[3]}",
            "mend that line, or lower the modules that can be traced: resfx.compile_blocks(new)",
        )  # fmt: skip
    graph = capture.graph
    apply_methods(graph, tree, find_sites(graph, tree), applications)
    for node in list(graph.nodes):
        if node.target in (enter, leave, keep):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            graph.erase_node(node)
    thread_states(capture, tree)
    graph.lint()
    return FlatCall(capture, function_of(graph))
