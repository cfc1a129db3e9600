"""Dynamic axes: readable names for the symbols of a traced program, and other sizes to check it at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from resfx.errors import ExportError


def sizes_of(program: torch.export.ExportedProgram) -> list[list[Any]]:
    """Sizes of the user's inputs: integers, or expressions over symbols."""
    names = set(program.graph_signature.user_inputs)
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    return [[_size(s) for s in value.shape] for value in values]


def _size(size: Any) -> Any:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else expression


def axis_names(
    program: torch.export.ExportedProgram, inputs: Sequence[str], dynamic: bool | Mapping[str, Mapping[int, str]]
) -> dict[str, str]:
    """A name for each symbol: the one asked for, else ``batch``, ``sequence``, ``decoder_sequence`` and so on.

    Raises:
        ExportError: if an axis asked to be dynamic is not.
    """
    names: dict[str, str] = {}
    asked = dynamic if isinstance(dynamic, Mapping) else {}
    sizes = dict(zip(inputs, sizes_of(program), strict=True))
    for name, axes in asked.items():
        if name not in sizes:
            raise ExportError(f"cannot make {name} dynamic", f"the inputs are {', '.join(inputs)}", "name one of them")
        for axis, label in axes.items():
            size = sizes[name][axis]
            if isinstance(size, int):
                raise ExportError(
                    f"cannot make axis {axis} of {name} dynamic", f"the model fixes its size to {size}",
                    "export one model for each size, with dynamic=False",
                )  # fmt: skip
            names.setdefault(str(size), label)
    for name, shape in sizes.items():
        for axis, size in enumerate(shape):
            if not isinstance(size, int) and size.is_symbol:
                names.setdefault(str(size), _unused(name, axis, set(names.values())))
    return names


def _unused(name: str, axis: int, taken: set[str]) -> str:
    base = name.removesuffix("_ids").removesuffix("_mask").removesuffix("_input")
    usual = {0: "batch", 1: "sequence", 2: "past_sequence" if "past" in name else None}.get(axis)
    candidates = ([usual, f"{base}_{usual}".replace(".", "_")] if usual else []) + [f"{name.replace('.', '_')}_{axis}"]
    return next((c for c in candidates if c not in taken), f"{candidates[-1]}_{len(taken)}")


def other_example(
    program: torch.export.ExportedProgram, leaves: Sequence[torch.Tensor], accepts: Any
) -> list[torch.Tensor] | None:
    """The example at other sizes on every dynamic axis, its values repeated or cut; ``None`` if there is no other."""
    sizes = sizes_of(program)
    symbols: dict[Any, int] = {}
    for shape, leaf in zip(sizes, leaves, strict=True):
        for size, here in zip(shape, leaf.shape, strict=True):
            if not isinstance(size, int) and size.is_symbol:
                symbols.setdefault(size, here)
    # Shorter is safer than longer where a model has a greatest length.
    for change in (lambda n: n - 2 if n > 4 else n + 1, lambda n: n + 1, lambda n: 2 * n):
        at = {s: change(n) for s, n in symbols.items()}
        other = [_resized(leaf, shape, at) for leaf, shape in zip(leaves, sizes, strict=True)]
        if symbols and accepts(other):
            return other
    return None


def _resized(leaf: torch.Tensor, shape: Sequence[Any], at: dict[Any, int]) -> torch.Tensor:
    for axis, size in enumerate(shape):
        wanted = size if isinstance(size, int) else int(size.subs(at))
        if wanted != leaf.shape[axis]:
            order = torch.arange(wanted, device=leaf.device) % max(leaf.shape[axis], 1)
            leaf = leaf.index_select(axis, order)
    return leaf.contiguous()


def rename_axes(model: Any, names: Mapping[str, str]) -> None:
    """Put readable names in every shape of an ``onnx_ir.Model``; expressions over symbols are renamed inside."""
    import onnx_ir as ir

    for value in _values(model):
        if value.shape is not None and not value.shape.frozen:
            for i, dim in enumerate(value.shape):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    text = _renamed(str(dim.value), names)
                    value.shape[i] = int(text) if text.isdigit() else ir.SymbolicDim(text)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    import re

    return re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m.group(), m.group()), text)


def _values(model: Any) -> list[Any]:
    values = [*model.graph.inputs, *model.graph.outputs]
    for node in model.graph.all_nodes():
        values.extend(node.outputs)
    return list({id(v): v for v in values}.values())
