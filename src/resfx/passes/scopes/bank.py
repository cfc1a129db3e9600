"""The bank of new modules: what each is to its method, at which add, and where it stands in the model's tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from resfx._torch import held_modules

BANK = "resfx"
"""The submodule of a rewritten model that holds all new modules."""

# The last parts of a module's path, by the scope of its method.
_LAST = {
    "site": "{role}{order}", "depth": "{role}{order}", "wide": "add{order}.{role}", "sequence": "{role}_{order}",
    "route": "{role}_{order}",
}  # fmt: skip


class Bank(nn.Module):
    """A level of the bank. A container that calls all its children one after the other calls this one too."""

    def forward(self, x: Any) -> Any:
        """``x`` itself."""
        return x


@dataclass(frozen=True)
class Placed:
    """One new module.

    Attributes:
        application: key of the application that built it.
        site: name of the add it stands at, as it was when the module was built.
        role: what it is to its method: ``add``; ``read``, ``exit``, ``shared``, ``ahead``; ``expand``, ``read``,
            ``write``, ``collapse``, ...; or the label of a mixer's or route's point.
        path: where it is in the model's tree.
        facts: what it was built for beside its site, and only fits.
    """

    application: str
    site: str
    role: str
    path: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def path_of(scope: str, key: str, owner: str, order: int, role: str) -> str:
    """Where a new module lives in the model's tree."""
    last = _LAST[scope].format(role=role, order=order)
    return ".".join(part for part in (BANK, key, owner, last) if part)


def place_module(tree: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, making the levels between."""
    root = tree  # in the mode of the whole: eval() on a model in eval mode must not look like another mode
    *parents, name = path.split(".")
    for part in parents:
        if part not in held_modules(tree):
            tree.add_module(part, Bank().train(root.training))
        tree = held_modules(tree)[part]  # type: ignore[assignment]
    tree.add_module(name, module.train(root.training))
