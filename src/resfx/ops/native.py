"""The C++ kernels for small calls in eager mode on a CPU: one call in the place of many tiny operators.

They are ONNX Runtime's, from the same library (:mod:`resfx.ops.library`), where ``python -m resfx kernels`` has
built it; plain torch runs elsewhere. They know no gradients and run on one thread, so they are asked where none is
recorded and where tensors are too small to be worth another.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resfx._torch import is_compiling, is_exporting, is_watched, schema_of, transforming

from .library import binding_of, built_kernels
from .record import Operator, operators

SMALL = 2**16
"""Elements up to which one thread is enough: torch itself shares out no less than half of that."""

_PLAIN = frozenset({Tensor, nn.Parameter, type(None)})


class Library:
    """The kernels of a library, called through an operator of torch that is built beside it.

    Raises:
        OSError, AttributeError: if it is not one.
    """

    def __init__(self, path: Any) -> None:
        library = ctypes.CDLL(str(path))
        self.find = library.resfx_find
        self.find.argtypes, self.find.restype = [ctypes.c_char_p], ctypes.c_int64
        self.function = ctypes.cast(library.resfx_call, ctypes.c_void_p).value
        if not hasattr(torch.ops.resfx_native, "run"):  # it is told where the kernels are: one serves every library
            torch.ops.load_library(str(binding_of(path)))
        self.operator = torch.ops.resfx_native.run.default
        self.numbers: dict[str, int] = {}

    def run(
        self, name: str, inputs: Sequence[Tensor | None], reals: Sequence[float], wholes: Sequence[int]
    ) -> list[Tensor]:
        """The results of a kernel; none where torch is to compute them: it may know types and shapes that kernels do
        not.

        Args:
            name: of the kernel.
            inputs: as its record lists them.
            reals, wholes: its numbers.
        """
        if not _PLAIN.issuperset(map(type, inputs)):
            return []
        number = self.numbers.get(name)
        if number is None:
            number = self.numbers[name] = self.find(name.encode())
        limit = SMALL if torch.get_num_threads() > 1 else 0
        return self.operator(self.function, number, inputs, reals, wholes, limit) if number >= 0 else []


def small_calls() -> Library | None:
    """The kernels, where they may run now; ``None`` where torch is to compute all."""
    if is_compiling() or torch.is_grad_enabled() or (library := _library()) is None:
        return None
    return None if is_exporting() or transforming() or is_watched() else library


class Native:
    """The kernel of one operator.

    Args:
        name: of the torch operator, in the namespace ``resfx``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Tensor | None:
        """The operator's result, of its arguments; ``None`` where torch is to compute it."""
        if (library := small_calls()) is None:
            return None
        packing = self._packing
        found = library.run(packing.record.name, packing.inputs(args), packing.reals(args), packing.wholes(args))
        return found[0] if found else None

    @functools.cached_property
    def _packing(self) -> _Packing:
        return _Packing(next(r for r in operators().values() if r.torch_name == f"resfx::{self.name}"))


class _Packing:
    """How the arguments of a torch operator become the inputs and numbers of its kernel."""

    def __init__(self, record: Operator) -> None:
        names = [a.name for a in schema_of(record.torch_op).arguments]
        single = [p.name for p in record.inputs if not p.many]
        attributes = [a for a in record.attributes if a.name != "stash_type"]
        self.record, self.names = record, names
        self.single = [names.index(name) for name in single]
        self.lists = [i for i, name in enumerate(names) if name not in {*single, *(a.name for a in attributes)}]
        at = [names.index(a.name) if a.name in names else a.name for a in attributes]
        self.real_at = [i for i, a in zip(at, attributes, strict=True) if a.type is float]
        self.whole_at = [i for i, a in zip(at, attributes, strict=True) if a.type is int]

    def inputs(self, args: tuple[Any, ...]) -> list[Tensor | None]:
        """Single tensors first, then lists."""
        found = [args[i] for i in self.single]
        for i in self.lists:
            found += args[i]
        return found

    def reals(self, args: tuple[Any, ...]) -> list[float]:
        """Attributes of type float."""
        return [self._value(i, args) for i in self.real_at]

    def wholes(self, args: tuple[Any, ...]) -> list[int]:
        """Attributes of type int."""
        return [int(self._value(i, args)) for i in self.whole_at]

    def _value(self, at: int | str, args: tuple[Any, ...]) -> Any:
        """An argument by its place, or what the record derives of all by name."""
        if isinstance(at, int):
            return args[at]
        return self.record.derived[at](dict(zip(self.names, args, strict=True)))


@functools.cache
def _library() -> Library | None:
    """The library, loaded once; ``None`` where it is not built, or ``RESFX_NATIVE=0`` says not to use it."""
    path = None if os.environ.get("RESFX_NATIVE") == "0" else built_kernels()
    if path is None:
        return None
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        warnings.warn(f"{path} cannot be used: {error}. Plain torch runs; `python -m resfx kernels` builds it again",
                      stacklevel=2)  # fmt: skip
        return None
