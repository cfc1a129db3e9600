"""What the rest of the library knows of an operator: one record, plain data, in the file ``record.py`` of its folder.

A folder of :mod:`resfx.ops` with a module ``record`` is an operator. Its neighbours there: ``formula`` registers the
torch operator, ``triton`` has its kernels for CUDA, ``onnx`` the bodies of its node, ``kernel.h`` its kernel for ONNX
Runtime on the CPU. Nothing outside the folder names it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

DOMAIN, VERSION = "resfx", 1
"""Of the nodes in ONNX."""

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Port:
    """An input or the output of a node.

    Attributes:
        name: the torch operator's argument for an input; a list of tensors may have another.
        kind: type variable: ``T`` the main tensors, any letter for numbers per row and weights, ``I...`` integers.
        doc: what it is, and its shape.
        optional: whether it may be absent.
        many: whether it is any number of tensors; the last input alone.
    """

    name: str
    kind: str
    doc: str
    optional: bool = False
    many: bool = False


@dataclass(frozen=True)
class Attribute:
    """A required attribute of a node; ``type`` is ``int``, ``float`` or ``str``."""

    name: str
    type: type
    doc: str


@dataclass(frozen=True)
class Builtin:
    """A kernel that ONNX Runtime has itself, in the place of a node on CUDA (``profile="ort-cuda"``).

    Attributes:
        name: of its node, in the domain ``com.microsoft``.
        since: the first release of ONNX Runtime that has it as used here, ``(major, minor)``.
        cuda, cpu: types that the CUDA and the CPU provider have it for, as ``onnx_ir`` names them.
        body: as of :class:`Operator`, with what ``fits`` gave as keywords.
        fits: what the body needs to know of a node's shapes; ``None`` where the kernel does not do what the node does.
    """

    name: str
    since: tuple[int, int]
    cuda: tuple[str, ...]
    cpu: tuple[str, ...]
    body: Callable[..., Any]
    fits: Callable[[Any], Mapping[str, int] | None] = lambda node: {}


@dataclass(frozen=True)
class Operator:
    """One operator as one node of an exported graph.

    Attributes:
        name: of the node in ONNX, in the domain ``resfx``.
        torch_name: the ``torch.library`` operator. Its tensors are the node's inputs, by name; lists of them, one after
            the other, its variadic input; its numbers the node's attributes.
        doc: what it computes.
        inputs, output, attributes: of the node. An attribute ``stash_type`` that the torch operator lacks is filled
            with the type to accumulate in: float for inputs ``T`` of half types.
        body: ``body(op, *inputs, **attributes)`` builds the function of standard operators with ``op.Add(...)`` and the
            like. Absent inputs are ``None``; attributes are references, flags numbers.
        flags: integer attributes that the body branches on.
        derived: attributes that the torch operator lacks, as functions of its arguments by name.
        builtin: ONNX Runtime's own kernel for it, where it has one.
        kernel: the function in ``kernel.h`` beside the record, a template of the main tensors' type; it finds the float
            attributes in ``kernel.real`` and the integer ones in ``kernel.whole``, in their order here without
            ``stash_type``. Empty for none.
        roundings: how many roundings, in sums of 100 terms, any form may be off the equation. The tests hold it to
            that.
    """

    name: str
    torch_name: str
    doc: str
    inputs: tuple[Port, ...]
    output: Port
    attributes: tuple[Attribute, ...]
    body: Callable[..., Any]
    flags: tuple[str, ...] = ()
    derived: Mapping[str, Callable[[Given], Any]] = field(default_factory=dict)
    builtin: Builtin | None = None
    kernel: str = ""
    roundings: float = 4.0

    @property
    def torch_op(self) -> Any:
        """The overload that appears in exported programs."""
        space, name = self.torch_name.split("::")
        return getattr(getattr(torch.ops, space), name).default

    @property
    def many(self) -> bool:
        """Whether the last input is a list."""
        return self.inputs[-1].many

    def port(self, i: int) -> Port:
        """What the ``i``-th input of a node is: the last again and again where it is a list."""
        return self.inputs[min(i, len(self.inputs) - 1)]


@dataclass(frozen=True)
class Joined:
    """Several operators in one kernel, for small calls in eager mode (:mod:`.native`); no node of any graph.

    Attributes:
        name: of the kernel in the library.
        inputs: a letter each: ``T`` tensors of one type, ``n`` numbers of any floating type; ``?`` behind what may be
            absent.
        reals, wholes: names of its numbers, in order.
        kernel: as of :class:`Operator`.
    """

    name: str
    inputs: str
    reals: tuple[str, ...]
    wholes: tuple[str, ...]
    kernel: str


def stash_type(doc: str = "computation runs") -> Attribute:
    """The attribute that says which type a node computes in."""
    return Attribute("stash_type", int, f"type that the {doc} in: float for half types")


def operators() -> dict[tuple[str, str], Operator]:
    """Every record by domain and name of its node."""
    return {(DOMAIN, record.name): record for folder in folders() for record in records_of(folder)}


def folders() -> tuple[str, ...]:
    """The operators' packages."""
    return _folders(*importlib.import_module(__package__).__path__)


@functools.cache
def _folders(*path: str) -> tuple[str, ...]:
    found = pkgutil.iter_modules(path, f"{__package__}.")
    return tuple(f.name for f in found if f.ispkg and importlib.util.find_spec(f"{f.name}.record"))


def records_of(folder: str) -> tuple[Operator, ...]:
    """The records of one package; its torch operators are registered by then."""
    importlib.import_module(f"{folder}.formula")
    return importlib.import_module(f"{folder}.record").RECORDS


def joined_of(folder: str) -> tuple[Joined, ...]:
    """The kernels of one package that are no nodes."""
    return getattr(importlib.import_module(f"{folder}.record"), "JOINED", ())


def kernel_of(folder: str) -> Path:
    """The C++ file of one package, there or not."""
    return Path(importlib.import_module(folder).__path__[0]) / "kernel.h"
