"""What every pass may ask of a node of a captured graph."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from resfx.passes.capture.marking.record import keep, leave

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_TORCH = str(Path(torch.__file__).parent)
_MODULE, _HERE = inspect.getfile(nn.Module), str(Path(__file__).parents[2])


def owner(node: fx.Node) -> str:
    """Qualified name of the module whose ``forward`` made the node; ``""`` for the root."""
    stack = module_stack(node)
    return stack[-1] if stack else ""


def module_stack(node: fx.Node) -> list[str]:
    """Qualified names of the modules whose calls made the node, outermost first."""
    paths = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    return [re.sub(r"@\d+", "", path).removeprefix("L['self'].") if isinstance(path, str) else "" for path in paths]


def calls_of(nodes: Iterable[fx.Node], module: str) -> tuple[str, ...]:
    """What some nodes call, or read of a module's own parameters, as the code of ``module`` names it; sorted.

    Only what has parameters counts: dropout and the like leave no node in some captures.
    """
    found = set()
    for node in nodes:
        parameters = [str(x.target) for x in node.all_input_nodes if x.op == "get_attr"]
        if parameters or node.op == "call_module":
            stack = ["", *module_stack(node)]  # some captures do not name the root
            last = len(stack) - 1 - stack[::-1].index(module) if module in stack else len(stack) - 2
            found.update(stack[last + 1 : last + 2] or parameters)
    start = f"{module}." if module else ""
    return tuple(sorted(name.removeprefix(start) for name in found))


def source_line(node: fx.Node) -> str:
    """``file.py:line`` of the user's code that made the node; ``""`` if the capture does not know."""
    frames = _frames(node)
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""


def source_lines(node: fx.Node) -> tuple[str, ...]:
    """``file.py:line`` for each step from the innermost ``forward`` to the node, without folders."""
    frames = _frames(node, innermost=True)
    starts = [i for i, (_, _, function) in enumerate(frames) if function == "forward"]
    return tuple(f"{Path(file).name}:{line}" for file, line, _ in frames[starts[-1] if starts else 0 :])


def _frames(node: fx.Node, innermost: bool = False) -> list[tuple[str, str, str]]:
    """``(file, line, function)`` of the user's code that made the node, outermost first.

    Args:
        innermost: only of the module called last; what stands for its ``forward`` may have another name.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    calls = [i for i, (file, _, _) in enumerate(frames) if file.startswith((_MODULE, _HERE))] if innermost else []
    return [f for f in frames[calls[-1] + 1 if calls else 0 :] if not f[0].startswith((_TORCH, _HERE))]


def shape(node: Any) -> tuple[Any, ...] | None:
    """Sizes of a node's tensor (``int`` or ``SymInt``), or ``None`` if unknown."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def dtype(node: fx.Node) -> torch.dtype | None:
    """Element type of a node's tensor, or ``None`` if unknown."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def hint(size: Any) -> int | None:
    """A size as a number: the example's, where it is symbolic."""
    if isinstance(size, int):
        return size
    try:
        found = size.node.hint
    except AttributeError:
        return None
    return int(found) if found is not None else None


def same_shape(a: fx.Node, b: fx.Node) -> bool | None:
    """Whether two nodes have equal sizes on the example; ``None`` if either is unknown."""
    left, right = shape(a), shape(b)
    if left is None or right is None:
        return None
    return len(left) == len(right) and all(hint(x) == hint(y) for x, y in zip(left, right, strict=True))


def outermost(node: fx.Node) -> fx.Node:
    """A value as the callers see it for whom it was computed: what a module gives back, outside of the module."""
    while len(users := [u for u in node.users if u.target is not keep]) == 1 and users[0].target is leave:
        node = users[0]
    return node
