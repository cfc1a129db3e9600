"""ReZero (arXiv 2003.04887) and SkipInit (arXiv 2002.10444): one learned gain of what a branch adds, zero at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from resfx.methods.base import Method, Place

from .layer_scale import Gain


@dataclass(frozen=True, kw_only=True)
class ReZero(Method):
    """``x + a f`` with one number ``a`` per site.

    ``start="published"`` has ``a = 0``: every branch is shut and the network is the identity. ``"preserve"`` learns the
    difference from the host, ``(x + f) + (a - 1) f`` with ``a = 1``. The host's norms stay where they are; the paper
    also trains without any.
    """

    name: ClassVar[str] = "rezero"
    parameters: ClassVar[str] = "1"
    saved: ClassVar[str] = "d"

    def build(self, place: Place) -> nn.Module:
        return Gain(self.start == "preserve", 0.0, 1, place)
