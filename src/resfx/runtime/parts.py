"""A submodule of a rewritten model as a rewritten module of its own.

Calling ``new.encoder(x)`` runs the user's code, which knows nothing of a rewritten graph. ``new.part("encoder")``
runs the rewritten adds that lie inside. ``generate()`` of an encoder-decoder asks for its encoder, and gets this.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from resfx._torch import held_modules, hook_names
from resfx.errors import NoSitesError, VariantError
from resfx.passes.capture.export import shell_of
from resfx.passes.capture.source import Source, without_self
from resfx.passes.scopes.application import Application


def part_of(tree: Any, name: str, rewritten_class: Callable[[type], type]) -> Any:
    """The submodule ``name`` over the same parameters, its claimed adds rewritten.

    Args:
        rewritten_class: makes the class of a rewritten module of the user's class.

    Raises:
        AttributeError: if there is no such submodule.
        NoSitesError: if none of its adds was rewritten.
        VariantError: if a method reaches across the submodule's border.
    """
    module = tree.get_submodule(name)
    runtime = tree._resfx
    if name not in runtime.parts:
        inner = [a for a in (_within(a, name) for a in runtime.applications) if a is not None]
        if not inner:
            raise NoSitesError(f"cannot make a part of {name!r}", "none of its residual adds was rewritten",
                               "call the submodule itself")  # fmt: skip
        signature = without_self(inspect.signature(type(module).forward))
        source = Source(module, type(module), signature, None)
        runtime.parts[name] = type(runtime)(source, inner, blocks=runtime.blocks.copy())
    part: Any = shell_of(module, rewritten_class(type(module)))
    part.__dict__.update({k: copy.copy(module.__dict__[k]) for k in hook_names(module.__dict__)})
    part._resfx = runtime.parts[name]
    bank = nn.Module()
    for application in part._resfx.applications:
        bank.add_module(application.key, tree.get_submodule(f"resfx.{application.key}.{name}"))
    held_modules(part)["resfx"] = bank
    return part


def _within(application: Application, name: str) -> Application | None:
    """The recipe with only the adds inside ``name``, called as they are called from there."""
    inside = application.within(name)
    if inside is not None and application.method.scope not in ("site", "sequence"):
        raise VariantError(
            f"cannot run {name!r} alone", f"{application.method.name} reads states across its border",
            "call the whole model",
        )  # fmt: skip
    return inside
