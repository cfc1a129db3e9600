"""One quantity over the depth of a model: as it was observed, averaged, and as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Quantity:
    """What one method's modules told in one call of the model.

    Attributes:
        name: ``"ddl/beta"``: the method, as the rewrite calls it, and the quantity.
        axes: names of the axes behind the rows, see :class:`resfx.methods.observe.Observed`.
        places: the residual adds, or the blocks, in the order in which they were reached.
        values: for each place an array ``(*rows, *axes)``: rows are ``(batch, tokens)``, or none.
        columns: for each place the numbers of the entries of the last axis; sources are numbered over depth.
    """

    name: str
    axes: tuple[str, ...]
    places: tuple[str, ...]
    values: tuple[Array, ...]
    columns: tuple[tuple[int, ...], ...]

    def by_depth(self) -> Array:
        """Averaged over the rows, ``(places, *axes)``. ``nan`` where a place has no such source."""
        return self._lined_up([v.mean(tuple(range(v.ndim - len(self.axes)))) for v in self.values])

    def by_token(self) -> Array:
        """Averaged over the batch, ``(places, tokens, *axes)``; one token for what does not depend on the input."""
        rows = []
        for value in self.values:
            leading = value.ndim - len(self.axes)
            rows.append(value.mean(tuple(range(leading - 1))) if leading else value[None])
        return self._lined_up(rows)

    @property
    def labels(self) -> list[int]:
        """What the entries of the last axis are called in :meth:`by_depth`: all numbers that occur, in order."""
        return sorted(set().union(*self.columns))

    def _lined_up(self, rows: Sequence[Array]) -> Array:
        if not self.axes:
            return np.stack(np.broadcast_arrays(*rows))
        labels = self.labels
        shape = np.broadcast_shapes(*(r.shape[:-1] for r in rows))
        out = np.full((len(rows), *shape, len(labels)), np.nan, dtype=np.float64)
        for line, row, columns in zip(out, rows, self.columns, strict=True):
            line[..., [labels.index(c) for c in columns]] = row
        return out

    def scalars(self) -> dict[str, float]:
        """The averages by tag, ``"ddl/beta/model.layers.0:1"``, one for each entry of an axis; for what has one axis
        at most: a map of heads by distance is a picture, not a list of curves."""
        if len(self.axes) > 1:
            return {}
        found = {}
        for place, value, columns in zip(self.places, self.values, self.columns, strict=True):
            mean = value.mean(tuple(range(value.ndim - len(self.axes)))).reshape(-1)
            names = [f"/{c}" for c in columns] if self.axes else [""]
            found.update({f"{self.name}/{place}{n}": float(x) for n, x in zip(names, mean, strict=True)})
        return found

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Write a picture (``.png``, ``.svg``, ``.pdf``).

        Raises:
            MissingPackageError: without matplotlib.
        """
        from .plot import plot_curves, plot_map, plot_matrices

        means = self.by_depth()
        if not self.axes:
            plot_curves(path, self.name, self.places, means, self.by_token())
        elif len(self.axes) == 1:
            plot_map(path, self.name, self.places, means, self.labels, self.axes[0])
        else:
            plot_matrices(path, self.name, self.places, means, self.labels, self.axes)
