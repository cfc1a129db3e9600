"""Everything that one probe of a model saw."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resfx.errors import OptionError, nearest

from .figures import figure_of
from .quantity import Array, Quantity


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """Quantities by name; ``probe["ddl/beta"].by_depth()`` is an array, and ``print`` lists what there is.

    Attributes:
        quantities: those of the methods, ``"<method>/<quantity>"``, and of the stream: ``stream/norm`` and
            ``stream/gradient`` behind every block, and the same with the methods switched off, ``original/...``.
    """

    quantities: dict[str, Quantity]

    def __getitem__(self, name: str) -> Quantity:
        """One quantity.

        Raises:
            OptionError: for a name that is not there, with those that are.
        """
        if name not in self.quantities:
            known = ", ".join(nearest(name, self.quantities))
            raise OptionError(f"there is no quantity {name!r}", f"there are {known}")
        return self.quantities[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.quantities)

    def arrays(self) -> dict[str, Array]:
        """Every quantity averaged over its rows, ``(places, *axes)``: what ``numpy.savez`` takes."""
        return {name: quantity.by_depth() for name, quantity in self.quantities.items()}

    def scalars(self) -> dict[str, float]:
        """Every average by its tag, see :meth:`.quantity.Quantity.scalars`."""
        return {tag: value for quantity in self.quantities.values() for tag, value in quantity.scalars().items()}

    def write(self, writer: Any, step: int) -> None:
        """Hand the scalars to TensorBoard.

        Args:
            writer: a ``torch.utils.tensorboard.SummaryWriter``, or whatever has its ``add_scalar(tag, value, step)``.
            step: of the training.
        """
        for tag, value in self.scalars().items():
            writer.add_scalar(tag, value, step)

    def draw(self, folder: str | os.PathLike[str], suffix: str = ".png") -> list[Path]:
        """A picture of every quantity; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, quantity in self.quantities.items():
            paths.append(folder / (re.sub(r"[^\w.]+", "_", name) + suffix))
            quantity.draw(paths[-1])
        return paths

    def figures(self) -> list[dict[str, Any]]:
        """A chart of every quantity, for ``resfx.page(new, path, figures=probe.figures())``."""
        return [figure_of(quantity) for quantity in self.quantities.values()]

    def __str__(self) -> str:
        lines = []
        for name, quantity in self.quantities.items():
            means = quantity.by_depth()
            shape = " x ".join(map(str, means.shape))
            axes = " x ".join(("place", *quantity.axes))
            low, high = np.nanmin(means), np.nanmax(means)
            lines.append(f"{name:28} {shape:>14}  {low:10.4g} .. {high:<10.4g} {axes}")
        return "\n".join(lines)

    def __repr__(self) -> str:  # what a notebook shows
        return str(self)
