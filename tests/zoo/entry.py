"""One architecture of the zoo, and how many residual adds its source says it has."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import inputs, libraries, plain, tiny


@dataclass(frozen=True)
class Entry:
    """A line of the zoo.

    Attributes:
        name: the model's class, or timm's name for it.
        source: ``transformers``, ``timm``, ``plain`` or one of :data:`libraries.PACKAGES`.
        blocks: the residual adds of each class of block, read from its source: see :func:`expected`.
        streams: residual streams it must have; ``None`` where the definition leaves it open.
        changes: what its configuration has beside the shared small one; ``_inputs`` changes the call.
    """

    name: str
    source: str
    blocks: str
    streams: int | None = 1
    changes: dict[str, Any] = field(default_factory=dict)

    def make(self) -> tuple[nn.Module, dict[str, Any]]:
        """The model, random and in eval mode, and the keyword arguments of one call."""
        changes = {k: v for k, v in self.changes.items() if k != "_inputs"}
        torch.manual_seed(0)
        if self.source == "transformers":
            model = tiny.build(self.name, changes)
            return model, inputs.inputs_of(model, self.changes.get("_inputs", {}))
        if self.source == "timm":
            return _timm(self.name, changes)
        if self.source in libraries.PACKAGES:
            return libraries.make(self.source, self.name, changes, self.changes.get("_inputs", {}))
        return plain.MODELS[self.name]()


def _timm(name: str, changes: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    size = changes.pop("size", None) or changes.get("img_size", 64)
    timm = tiny.import_timm()
    if ":" in name:
        module, cls = name.split(":")
        model = getattr(importlib.import_module(f"timm.models.{module}"), cls)(num_classes=5, **changes)
    else:
        model = timm.create_model(name, num_classes=5, **changes)
    height = size if isinstance(size, int) else size[0]
    return model.eval(), {"x": inputs.noise(2, 3, height, height)}


_ITEM = re.compile(r"(\w+)(?:\[(.*?)\])?(?:\*(\d+))? +(.+)")


def expected(model: nn.Module, blocks: str) -> Counter[str]:
    """Residual adds by form: for each class of block, how many the model has times what one adds.

    ``blocks`` is ``Class adds; Class adds; ...``. ``adds`` is a number (identity shortcuts) or the forms in order.
    ``Class[attribute]`` counts the blocks whose attribute is set, ``[!attribute]`` the others,
    ``[attribute=Name]`` those whose attribute is of a class or has that value; ``Class*3`` a block that is called
    three times. ``none`` is a model without residual adds.
    """
    found: Counter[str] = Counter()
    if blocks.strip() == "none":
        return found
    for item in blocks.split(";"):
        match = _ITEM.fullmatch(item.strip())
        assert match is not None, f"cannot read {item!r}"
        cls, conditions, times, adds = match.groups()
        owners = [m for m in model.modules() if type(m).__name__ == cls]
        assert owners, f"{type(model).__name__} has no {cls}"
        fitting = [m for m in owners if all(_holds(m, c.strip()) for c in (conditions or "").split(",") if c)]
        for form in ["identity"] * int(adds) if adds.isdigit() else adds.split():
            found[form] += len(fitting) * int(times or 1)
    return +found


def _holds(module: nn.Module, condition: str) -> bool:
    name, _, wanted = condition.lstrip("!").partition("=")
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if wanted:
        hit = type(value).__name__ == wanted or str(value) == wanted
    else:
        empty = isinstance(value, nn.Sequential) and not len(value)
        hit = value is not None and value is not False and not empty
    return hit != condition.startswith("!")


def read(source: str, table: str) -> list[Entry]:
    """Lines of ``name | blocks | streams | changes``; the last two may be missing, ``?`` leaves streams open."""
    entries = []
    for line in table.strip().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, blocks, streams, changes = [*(c.strip() for c in line.split("|")), "", ""][:4]
        count = None if streams == "?" else int(streams or 1)
        entries.append(Entry(name, source, blocks, count, ast.literal_eval(changes or "{}")))
    return entries


Factory = Callable[[], tuple[nn.Module, dict[str, Any]]]
