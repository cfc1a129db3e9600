"""Modules of methods that own parameters: how these start, and that nobody else starts them.

A start is given by ``reset_parameters()``, torch's convention, and by nothing else: a model that was built on the meta
device gets it after ``to_empty()`` as it got it when it was built. No module here is of a class that hosts initialise
by class (``nn.Linear``, ``nn.Embedding``, norms): transformers' ``init_weights`` leaves all of them alone.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from resfx._torch import held_buffers, held_parameters
from resfx.ops.inductor import row_product
from resfx.ops.register import in_type

Draw = Callable[[Tensor], Any]
"""Fills a tensor; one that can be pickled."""

zeros: Draw = nn.init.zeros_


def normal(std: float) -> Draw:
    """Draws from ``N(0, std^2)``."""
    return functools.partial(nn.init.normal_, std=std)


def uniform(bound: float) -> Draw:
    """Draws from ``U(-bound, bound)``."""
    return functools.partial(nn.init.uniform_, a=-bound, b=bound)


def constant(value: float) -> Draw:
    """Fills with one number."""
    return functools.partial(nn.init.constant_, val=value)


class Learned(nn.Module):
    """Base of a module that owns parameters. It makes them empty (:meth:`empty`) and then calls
    :meth:`reset_parameters`, which writes every one of them and every buffer that lies in no save.

    No parameter is a scalar, which sharding refuses: single numbers have the shape ``(1,)``. Numbers of the config that
    it computes with are :meth:`constants`: they lie in no save, and have their values wherever the module goes.
    """

    _types: tuple[torch.dtype, ...] = ()  # those that the constants have had, each once: a cast rounds for good

    def reset_parameters(self) -> None:
        """Give the parameters of this module itself, not of its children, their start."""
        raise NotImplementedError

    def constants(self) -> dict[str, Tensor]:
        """The values of the buffers that :meth:`hold_constants` makes, by name."""
        return {}

    def hold_constants(self, device: Any, dtype: torch.dtype) -> None:
        """Make a buffer for each constant, without values yet.

        Args:
            device: of all of them.
            dtype: of those that are no integers.
        """
        for name, value in self.constants().items():
            kind = dtype if value.is_floating_point() else value.dtype
            self.register_buffer(name, torch.empty_like(value, device=device, dtype=kind), persistent=False)

    def write_constants(self, names: Collection[str] | None = None) -> None:
        """Give the buffers of constants their values: all of them as at the start, or some as they have become."""
        if names is None:
            self._types = ()
        with torch.device("cpu"):
            values = self.constants()
        for name in values if names is None else names:
            buffer, value = self.get_buffer(name), values[name]
            if buffer.is_floating_point():
                if buffer.dtype not in self._types:
                    self._types += (buffer.dtype,)
                for dtype in self._types:  # as the parameters were rounded that started at the same values
                    value = value.to(dtype)
            set_values(buffer, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # ``to_empty`` is one of these, and no save gives back what it leaves undefined.
        before = {name: self.get_buffer(name) for name in self.constants()}
        applied = super()._apply(fn, recurse)
        self.write_constants([n for n, buffer in before.items() if self.get_buffer(n) is not buffer])
        return applied

    def upgrade(self, state: dict[str, Any], prefix: str) -> None:
        """Bring what an older version saved of this module into its present form, in ``state``, a dict of tensors.

        Here: single numbers were scalars. Modules that changed more say so.
        """
        for name, _ in self.named_parameters(recurse=False):
            saved = state.get(prefix + name)
            if saved is not None and saved.ndim == 0:
                state[prefix + name] = saved.reshape(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.upgrade(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        place = next((parameter.device for parameter in self.parameters(recurse=False)), torch.device("meta"))
        for name in self.constants():  # ``assign=True`` gives a module on meta its parameters, and no more
            buffer = self.get_buffer(name)
            if buffer.is_meta and place.type != "meta":
                held_buffers(self)[name] = torch.empty_like(buffer, device=place)
                self.write_constants([name])


def upgrade_all(model: nn.Module, state: dict[str, Any]) -> None:
    """:meth:`Learned.upgrade` of every module of a model, for the state of the whole."""
    for name, module in model.named_modules():
        if isinstance(module, Learned):
            module.upgrade(state, f"{name}." if name else "")


def empty(*shape: int, **factory: Any) -> nn.Parameter:
    """A parameter that has no values yet; ``factory`` is its type and device."""
    return nn.Parameter(torch.empty(*shape, **factory))


@torch.no_grad()
def set_values(parameter: Tensor, values: Tensor) -> None:
    """Write ``values``, a whole tensor in any type and place, into a parameter, be it whole or a shard."""
    values = values.detach().to(parameter.device, parameter.dtype)
    if type(parameter) is not nn.Parameter and torch.distributed.is_available():
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(parameter, DTensor) and not isinstance(values, DTensor):
            values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    parameter.copy_(values)


class Linear(Learned):
    """A linear map ``(..., width)`` to ``(..., out)`` that starts as its method says, in the type of its weight.

    Parameters are those of ``nn.Linear``, which it is not: hosts initialise, quantise and adapt those by class.
    Compiled, a map to one number per row runs in float32 for half types (:func:`resfx.ops.inductor.row_product`).

    Args:
        width: features read.
        out: features of the result.
        weight: how the weight ``(out, width)`` starts; by default as in ``nn.Linear``.
        bias: how the bias ``(out,)`` starts, if there is one.
        factory: ``device`` and ``dtype`` of both.
    """

    bias: nn.Parameter | None

    def __init__(
        self, width: int, out: int, weight: Draw | None = None, bias: Draw | None = None, **factory: Any
    ) -> None:
        super().__init__()
        self.starts = weight or uniform(1 / math.sqrt(width)), bias
        self.weight = empty(out, width, **factory)
        self.bias = None if bias is None else empty(out, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        weight, bias = self.starts
        weight(self.weight)
        if self.bias is not None and bias is not None:
            bias(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        form = row_product if weight.shape[0] == 1 else nn.functional.linear
        return form(in_type(x, weight.dtype), weight, self.bias)

    @property
    def in_features(self) -> int:
        """Features read."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Features of the result."""
        return self.weight.shape[0]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def tensors_of(module: nn.Module, *names: str) -> list[Any]:
    """Attributes of a module, faster than one by one where they are its parameters; one with a parametrisation is
    not."""
    own = held_parameters(module)
    return [own[name] if name in own else getattr(module, name) for name in names]


class CopiedNorm:
    """What a copy of a host's norm is beside that (:func:`copied_norm`): it starts as the host's own does at the time,
    and its parameters carry the mark by which transformers' initialisers leave a tensor alone."""

    _original: tuple[nn.Module]  # in a tuple: not a child

    def reset_parameters(self: Any) -> None:
        """The values of the host's norm, whatever they are by now."""
        for name, parameter in self._original[0].named_parameters(recurse=False):
            set_values(self.get_parameter(name), parameter)
        self._mark()

    def _mark(self: Any) -> None:
        for parameter in self.parameters(recurse=False):
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        applied = super()._apply(*args, **kwargs)  # type: ignore[misc]  # may make new parameters
        self._mark()
        return applied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]  # a copy's parameters are new
        self._mark()

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank_copy, (type(self).__bases__[1],), self.__dict__.copy()


def copied_norm(norm: nn.Module, **factory: Any) -> nn.Module:
    """A copy of a norm with parameters of its own, of a subclass of its class.

    Args:
        norm: of the host, or fresh; parameters of its own, no children.
        factory: ``device`` and ``dtype`` of the copy.
    """
    made = copy.deepcopy(norm)
    kind: Any = type(norm)
    made.__class__ = _copy_class(kind)
    made.__dict__["_original"] = (norm,)
    return made.to(**factory)


def _blank_copy(cls: Any) -> Any:
    return object.__new__(_copy_class(cls))


@functools.cache
def _copy_class(cls: Any) -> Any:
    # Named otherwise than the class: hosts know their norms by name.
    return type("NormOfHost", (CopiedNorm, cls), {"__module__": __name__})
