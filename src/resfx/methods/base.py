"""What a method is: a frozen config that builds one module of mathematics per place. No graph node in sight."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from resfx.errors import OptionError, meant, nearest

from .options import refuse_unknown, refuse_wrong_types

Start = Literal["preserve", "published"]


@dataclass(frozen=True)
class Place:
    """What a method may know of the place it is built for.

    Attributes:
        width: features of the stream, ``d``.
        context_width: features of the normalised context, or ``None`` where the branch has no opening norm.
        kind: ``attention``, ``mlp``, ``conv`` or ``other``.
        depth: number of residual adds before this one in its stream; for ``wide``, of those before it in the widened
            part that read a state of their own, so that parallel branches have one.
        dtype: element type for new parameters.
        device: where new parameters live.
        block: name of the repeated block that the add belongs to.
        rank: dimensions of the stream, 3 for ``(batch, tokens, d)``; ``None`` if unknown.
        parallel: whether the branch starts from the same state as the one before, ``(x + f) + g``.
        point: scopes ``sequence`` and ``route``: which point of the branch, see :class:`Method`.
        heads: heads of the host's attention, where there is one.
        causal: whether the host reads earlier positions only.
        norm: a copy of the norm that opens the branch, with parameters of its own that start as the host's.
    """

    width: int
    context_width: int | None
    kind: str
    depth: int
    dtype: torch.dtype
    device: torch.device
    block: str = ""
    rank: int | None = None
    parallel: bool = False
    point: str = ""
    heads: int | None = None
    causal: bool = True
    norm: nn.Module | None = None


def factory_of(place: Place) -> dict[str, Any]:
    """Device and type for new parameters."""
    return {"device": place.device, "dtype": place.dtype}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of every method's config. ``scope`` says what the built module is called with. Features come last,
    ``(..., d)``, whatever axis the host keeps them on.

    ``site``: ``forward(x, f, c)`` gives the new stream from the shortcut ``x (..., d)``, the branch output
    ``f (..., d)`` and the normalised context ``c (..., d_c)`` or ``None``. A ``forward`` that also takes ``total``
    is given ``x + f`` as the host computes it wherever that is more than a plain add.

    ``wide``: :meth:`build_stream` gives the modules of a stream of ``n`` channels, see
    :class:`resfx.methods.wide.base.WideStream`.
    ``route``: ``forward(sources, v)`` gives the projection ``v`` mixed with that of earlier layers, see
    :class:`resfx.methods.route.base.RouteMethod`.
    ``sequence``: ``forward(h, mask, state, keep)`` gives ``h (batch, positions, width)`` mixed over the positions; see
    :class:`resfx.methods.sequence.mixer.Mixer`. ``points`` says where: ``"stream"`` (a residual sublayer of its own
    before the attention), ``"attention"`` (what the attention reads), ``"q"``, ``"k"``, ``"v"`` (projections, after a
    norm over the head), ``"mlp"`` (what the MLP reads), ``"hidden"`` (its first projection, before the activation).

    Three texts go into the table of methods: new ``parameters`` per site at the defaults; what is ``kept`` between
    tokens beside the host's own cache; what ``crosses`` from one pipeline stage to the next, in vectors ``(d,)`` per
    token where it is a number (the plain stream is 1). A fourth, ``saved``, is a formula that ``benchmarks.memory``
    holds against what is there: how many numbers per token an add within the stream, or a read of ``n`` sources that
    gives ``o`` tensors, keeps for the backward pass beyond what the plain model does, in eager mode; empty where none
    is stated. What stands once in a block is shared out to its two adds.

    A module that has ``observe``, see :mod:`resfx.methods.observe`, tells :func:`resfx.probe` what it learned.

    Attributes:
        start: ``"preserve"`` computes exactly what the host did until the new parameters learn;
            ``"published"`` is the initialisation of the paper, for training from scratch.
    """

    name: ClassVar[str] = ""
    scope: ClassVar[str] = "site"
    points: ClassVar[tuple[str, ...]] = ()
    parameters: ClassVar[str] = ""
    kept: ClassVar[str] = "nothing"
    crosses: ClassVar[str] = "1"
    saved: ClassVar[str] = ""

    start: Start = "preserve"

    def __new__(cls, *values: Any, **options: Any) -> Self:
        """Refuse options before the dataclass does, in words that list those there are."""
        refuse_unknown(cls, values, options)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        refuse_wrong_types(self)

    def refuse(self, place: Place) -> str | None:
        """Why the method cannot act at a place; ``None`` where it can."""
        return None

    def build(self, place: Place) -> nn.Module:
        """The module for one place."""
        raise NotImplementedError

    def build_stream(self, places: Sequence[Place]) -> Any:
        """The modules of a wide stream over consecutive places."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The method's name, or its class's where it has none."""
        return self.name or type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """The config as plain data, with the method's name."""
        return {"method": self.label, **dataclasses.asdict(self)}


@functools.cache
def methods() -> dict[str, type[Method]]:
    """Every method of the library by name: each is one file of :mod:`resfx.methods`."""
    package = importlib.import_module("resfx.methods")
    for info in pkgutil.walk_packages(package.__path__, "resfx.methods."):
        importlib.import_module(info.name)
    found: dict[str, type[Method]] = {}
    stack: list[type[Method]] = [Method]
    while stack:
        cls = stack.pop()
        stack.extend(cls.__subclasses__())
        if cls.name and cls.__module__.startswith("resfx.methods."):
            found[cls.name] = cls
    return dict(sorted(found.items()))


def method_of(mode: str | Method, start: Start | None = None) -> Method:
    """The config that a ``mode`` means.

    Raises:
        OptionError: for an unknown name, or anything but a name or a config.
    """
    if isinstance(mode, str):
        if mode not in methods():
            near = meant(mode, methods())
            raise OptionError(
                f"unknown mode {mode!r}", f"the modes are: {', '.join(nearest(mode, methods()))}",
                f"mode={near!r}" if near else "one of these, or a config such as resfx.DDL()",
            )  # fmt: skip
        mode = methods()[mode]()
    if not isinstance(mode, Method):
        whole = isinstance(mode, type) and issubclass(mode, Method)
        found = f"the class {mode.__name__}" if isinstance(mode, type) else f"{mode!r:.60}, a {type(mode).__name__}"
        raise OptionError(
            "mode must be a method's name or its config", found,
            f"mode={mode.__name__}()" if whole else "mode='ddl', or mode=resfx.DDL(...), or a list of them",
        )  # fmt: skip
    return mode if start is None else dataclasses.replace(mode, start=start)
