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
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from resfx._torch import is_compiling, is_exporting, is_watched, schema_of, transforming

from .library import built_kernels
from .record import Operator, operators

SMALL = 2**16
"""Elements up to which one thread is enough: torch itself shares out no less than half of that."""

_TYPES = {torch.float32: 1, torch.int32: 6, torch.int64: 7, torch.bool: 9, torch.float16: 10, torch.float64: 11,
          torch.bfloat16: 16}  # fmt: skip


class Native:
    """The kernel of one operator.

    Args:
        name: of the torch operator, in the namespace ``resfx``.
        result: an empty tensor like the result, of the operator's arguments.
    """

    def __init__(self, name: str, result: Callable[..., Tensor]) -> None:
        self.name, self.result = name, result

    def __call__(self, *args: Any) -> Tensor | None:
        """The operator's result, of its arguments; ``None`` where torch is to compute it."""
        if is_compiling() or is_exporting() or torch.is_grad_enabled() or (library := _library()) is None:
            return None
        if transforming() or is_watched():
            return None
        packing = self._packing
        inputs = packing.inputs(args)
        dtype = packing.type_of(inputs)
        if dtype is None or (index := packing.index(library, dtype)) < 0:
            return None
        held = [x if x is None or x.is_contiguous() else x.contiguous() for x in inputs]
        out = self.result(*args)
        words = [len(held)]
        for x in held:
            words += (0, 0, 0) if x is None else (x.data_ptr(), _TYPES[x.dtype], x.dim(), *x.shape)
        words += (out.data_ptr(), out.numel())
        refused = library.resfx_call(index, (ctypes.c_int64 * len(words))(*words), *packing.numbers(args))
        return out if refused is None else None  # torch may know shapes that the kernel does not

    @functools.cached_property
    def _packing(self) -> _Packing:
        return _Packing(next(r for r in operators().values() if r.torch_name == f"resfx::{self.name}"))


class _Packing:
    """How the arguments of a torch operator become the inputs and attributes of its kernel."""

    def __init__(self, record: Operator) -> None:
        names = [a.name for a in schema_of(record.torch_op).arguments]
        single = [p.name for p in record.inputs if not p.many]
        attributes = [a for a in record.attributes if a.name != "stash_type"]
        self.record, self.names = record, names
        self.single = [names.index(name) for name in single]
        self.lists = [i for i, name in enumerate(names) if name not in {*single, *(a.name for a in attributes)}]
        self.kinds = [p.kind for p in record.inputs]
        at = [names.index(a.name) if a.name in names else a.name for a in attributes]
        self.reals = [i for i, a in zip(at, attributes, strict=True) if a.type is float]
        self.wholes = [i for i, a in zip(at, attributes, strict=True) if a.type is int]
        self.known: dict[torch.dtype, int] = {}

    def inputs(self, args: tuple[Any, ...]) -> list[Tensor | None]:
        """Single tensors first, then lists."""
        return [args[i] for i in self.single] + [x for i in self.lists for x in args[i]]

    def type_of(self, inputs: list[Tensor | None]) -> torch.dtype | None:
        """The type of the main tensors; ``None`` where the kernel cannot take these, or should not."""
        dtype, size, last = None, 0, len(self.kinds) - 1
        for i, x in enumerate(inputs):
            if x is None:
                continue
            if type(x) not in (Tensor, nn.Parameter) or not x.is_cpu or x.layout is not torch.strided:
                return None
            kind = self.kinds[min(i, last)]
            if kind == "T":
                size += x.numel()
                if dtype is not None and x.dtype != dtype:
                    return None
                dtype = x.dtype
            elif x.dtype not in _TYPES or (x.dtype is torch.bool) != kind.startswith("I"):
                return None
        return None if size == 0 or (size > SMALL and torch.get_num_threads() > 1) else dtype

    def index(self, library: Any, dtype: torch.dtype) -> int:
        """The number of the kernel for a type; -1 for none."""
        if dtype not in self.known:
            name = self.record.name.encode()
            self.known[dtype] = library.resfx_find(name, _TYPES[dtype]) if dtype in _TYPES else -1
        return self.known[dtype]

    def numbers(self, args: tuple[Any, ...]) -> tuple[Any, Any]:
        """The attributes, as arrays."""
        reals, wholes = self._values(self.reals, args), self._values(self.wholes, args)
        return _array(ctypes.c_float, *reals), _array(ctypes.c_int64, *wholes)

    def _values(self, at: list[int | str], args: tuple[Any, ...]) -> list[Any]:
        """Arguments by their place, and what the record derives of them by name."""
        derive = self.record.derived
        return [args[i] if isinstance(i, int) else derive[i](dict(zip(self.names, args, strict=True))) for i in at]


@functools.lru_cache(maxsize=256)
def _array(kind: Any, *values: Any) -> Any:
    return (kind * max(1, len(values)))(*values)


@functools.cache
def _library() -> Any:
    """The library, loaded once; ``None`` where it is not built, or ``RESFX_NATIVE=0`` says not to use it."""
    path = None if os.environ.get("RESFX_NATIVE") == "0" else built_kernels()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.resfx_find.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        library.resfx_find.restype = ctypes.c_int64
        library.resfx_call.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        library.resfx_call.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        warnings.warn(f"{path} cannot be used: {error}. Plain torch runs; `python -m resfx kernels` builds it again",
                      stacklevel=2)  # fmt: skip
        return None
    return library
