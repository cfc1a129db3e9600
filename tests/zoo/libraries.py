"""Models of libraries that are not installed with this one: their lines are run where they are."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from torch import nn

from . import inputs
from .torchvision_stub import imported

PACKAGES = {
    "diffusers": "diffusers", "monai": "monai.networks.nets", "x-transformers": "x_transformers",
    "vit-pytorch": "vit_pytorch", "open_clip": "open_clip",
}  # fmt: skip
"""Where a library's classes are, by what a line says it is from."""


def is_installed(source: str) -> bool:
    """Whether the lines of a source can be run."""
    return source not in PACKAGES or importlib.util.find_spec(PACKAGES[source].split(".")[0]) is not None


def make(source: str, name: str, changes: dict[str, Any], call: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A random model in eval mode and the arguments of one call.

    Args:
        name: ``Class`` or ``module:Class`` within the library's package; what follows a ``/`` only tells lines apart.
        changes: arguments of the class; one with a ``_class`` is a module itself.
        call: as for :func:`inputs.inputs_of`.
    """
    imported(PACKAGES[source].split(".")[0])
    model = _built(source, {"_class": name.split("/")[0], **changes})
    return model.eval(), {key: inputs.value_of(change, None) for key, change in call.items()}


def _built(source: str, given: dict[str, Any]) -> nn.Module:
    module, _, cls = given["_class"].rpartition(":")
    package = importlib.import_module(".".join(p for p in (PACKAGES[source], module) if p))
    rest = {k: v for k, v in given.items() if k != "_class"}
    nested = {k: _built(source, v) if isinstance(v, dict) and "_class" in v else v for k, v in rest.items()}
    return getattr(package, cls)(**nested)
