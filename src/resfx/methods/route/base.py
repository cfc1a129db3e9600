"""What all routes share: the config's questions, what is known of a place, and the call of the module.

A route stands behind a projection of an attention, ``q``, ``k`` or ``v``, after a norm over the head where there is one
and before the rotation: there every layer has a tensor of one kind, so a later layer can read those of the earlier
ones. What it gives is what the host caches, so a decoding step reads the same token's own layers and keeps nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resfx.methods.base import Method, Place


@dataclass(frozen=True, kw_only=True)
class RoutePlace(Place):
    """What a route may know of the attention it stands in. ``width`` is ``heads * head_dim``: of the point, where keys
    and values are grouped ``heads`` is less than the host's query heads.

    Attributes:
        layer: how many attentions of the stream come before.
        layers: how many the stream has.
        sources: how many tensors the module is handed.
        head_dim: features of a head.
        vocabulary: rows of the table that the stream's tokens are read from; ``None`` where it begins otherwise.
    """

    layer: int
    layers: int
    sources: int
    head_dim: int
    vocabulary: int | None = None


@dataclass(frozen=True, kw_only=True)
class RouteMethod(Method):
    """Base of the routes. The module built for an attention is called as ``forward(sources, v)`` at each of its points.

    ``v`` is the projection ``(batch, positions, heads, head_dim)``, ``sources`` a list of the same projection of the
    layers that :meth:`sources` names, as those layers computed it, before their own route. What is returned, in the
    shape and type of ``v``, is what the attention goes on with. With ``start="preserve"`` it must be ``v`` bit for bit
    until the new parameters learn: ``v + correction`` with a correction of exactly zero.

    ``points`` names the projections, ``"q"``, ``"k"``, ``"v"``; where it has several, each has a module of its own
    unless the method is ``shared``. A method that ``wants`` more is handed it by name: ``context (batch, positions,
    d)``, what the attention's projections read, and ``tokens (batch, positions)``, the token numbers that the stream
    begins with; a stream that does not begin with tokens is then left alone.
    """

    scope: ClassVar[str] = "route"
    points: ClassVar[tuple[str, ...]] = ("v",)
    shared: ClassVar[bool] = False
    wants: ClassVar[tuple[Literal["context", "tokens"], ...]] = ()

    def sources(self, layer: int, layers: int) -> list[int] | None:
        """The layers that layer ``layer`` of ``layers`` reads, or ``None`` where the host's projection stays as it is.

        Layers are the stream's self-attentions, from 0; those read must come before.
        """
        raise NotImplementedError
