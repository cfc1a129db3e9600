"""A graph as one function: what export targets take, and how a graph runs that the user captured."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from resfx.errors import VariantError


def function_of(graph: fx.Graph) -> Callable[..., Any]:
    """A flat graph as a function of the module tree and the graph's inputs."""
    code = graph.python_code("self")
    filename = f"<resfx graph {id(graph)}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(True), filename)
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, filename, "exec"), scope)
    return scope["forward"]


def forward_of_graph(graph: fx.Graph, cls: str) -> Callable[..., Any]:
    """The forward of a graph that the user has; what its own guards refuse is said in words."""
    run = function_of(graph)

    def forward(self: nn.Module, new: Any, handed: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return run(self, *args, **kwargs)
        except AssertionError as error:
            if "Guard failed" not in str(error):
                raise
            raise VariantError(
                f"this {cls} is a captured program that does not accept these inputs", str(error),
                "export it with dynamic_shapes for the sizes that vary, or rewrite the model itself",
            ) from error  # fmt: skip

    return forward
