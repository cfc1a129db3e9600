"""What all operators share: the type they accumulate in, and how a call finds the form that runs it.

An operator is a formula in plain torch, the source of truth. :func:`fused` registers it with ``torch.library`` and
gives it Triton kernels, which run in eager mode on CUDA where :mod:`resfx.ops.choice` does not say otherwise. The
formula runs everywhere else: on other devices, compiled, exported, differentiated in forward mode or twice, and under
``torch.func``.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from resfx._torch import forward_mode, is_compiling, is_legacy_batchedtensor, pytree, transforming

from .choice import chosen
from .native import Native

KERNEL_DEVICES = {"cuda"}  # the tests add "cpu", where kernels are interpreted
KERNEL_TYPES = (torch.float16, torch.bfloat16, torch.float32)

_opaque: contextvars.ContextVar[bool] = contextvars.ContextVar("resfx_opaque", default=False)


@contextlib.contextmanager
def opaque_operators() -> Iterator[None]:
    """Inside, fused operators stay one node each in a traced graph: for export to runtimes that have them."""
    token = _opaque.set(True)
    try:
        yield
    finally:
        _opaque.reset(token)


def keeps_one_node() -> bool:
    """Whether to call the registered operator. Under ``torch.compile`` the open formula is the fast one."""
    return not torch.compiler.is_dynamo_compiling() and _opaque.get()


class Node:
    """An operator that is one node of an exported program: called, that node.

    Attributes:
        native: its kernel for small calls.
    """

    def __init__(self, name: str, operator: Callable[..., Tensor]) -> None:
        self.operator, self.native = operator, Native(name)

    def __call__(self, *args: Any) -> Tensor:
        return self.operator(*args)


def one_node(name: str, formula: Callable[..., Tensor], result: Callable[..., Tensor]) -> Node:
    """Register ``torch.ops.resfx.<name>``, which is there to be one node of an exported program; no gradients.

    Args:
        name: of the operator; its ONNX record is in ``record.py`` of its folder.
        formula: plain torch, with annotations that ``torch.library.infer_schema`` reads.
        result: an empty tensor like the result, of the formula's arguments: it decides nothing by sizes, so a trace
            keeps them all open, as the formula's blocks and pads may not.
    """
    schema = torch.library.infer_schema(formula, mutates_args=())
    operator = torch.library.custom_op(
        f"resfx::{name}", lambda *args: formula(*args).contiguous(), mutates_args=(), schema=schema
    )
    operator.register_fake(result)
    return Node(name, operator)


def at_kernels(x: Tensor) -> bool:
    """Whether eager calls on this tensor's device run kernels, where there are any for them."""
    return not is_compiling() and x.device.type in KERNEL_DEVICES


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that reductions run in: float32 for half types, else the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def in_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in a type: itself where it has it, without asking torch, which would take longer than a small sum.

    What an ``autograd.Function`` returns takes this way: compiled by torch 2.11, a result that ``to`` hands on as it is
    has no gradient.
    """
    return x if x.dtype == dtype else x.to(dtype)


def plus(terms: Iterable[Tensor]) -> Tensor:
    """The sum, term by term from the first."""
    return functools.reduce(torch.add, terms)


def fused(
    name: str,
    formula: Callable[..., Tensor],
    *,
    eager: Callable[..., Tensor] | None = None,
    open_form: Callable[..., Tensor] | None = None,
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
    kernels: str = "",
    node: Native | None = None,
) -> Callable[..., Tensor]:
    """Register ``torch.ops.resfx.<name>`` and return the function that picks a form call by call.

    The kernels are a module of :mod:`resfx.ops`, imported when the first CUDA tensor comes, with three functions of the
    formula's arguments, all of them positional: ``supported(*args)`` says whether the kernels take these,
    ``forward(*args)`` gives the result in memory of its own, and ``gradients(grad, *args)`` a tuple with a gradient
    (a list of them for a list of tensors) or ``None`` for each argument.

    The registered operator has a CPU implementation (the formula), fake tensors, autograd and vmap. Its backward pass
    runs the kernels, or differentiates the formula where the kernels do not apply or the gradients are to be
    differentiated themselves. Forward mode it refuses, rather than lose the tangents.

    Args:
        name: of the operator, in the namespace ``resfx``.
        formula: plain torch, with annotations that ``torch.library.infer_schema`` reads, and no two ways to call it.
        eager: the same in fewer passes over memory, for the operator's CPU implementation.
        open_form: what to call instead of the formula where the kernels are not used.
        layout: brings a result into the memory layout that the kernels write.
        kernels: the name of that module within :mod:`resfx.ops`; ``<name>.triton`` by default.
        node: where it has an ONNX record of its own, and can stay one node (:func:`opaque_operators`): its kernel for
            small calls.
    """
    module = kernels or f"{name}.triton"
    plain, outside = eager or formula, open_form or formula

    def run(*args: Any) -> Tensor:
        if forward_mode():
            raise RuntimeError(
                f"torch.ops.resfx.{name} was called in forward mode, where a registered operator would lose the"
                f" tangents: call the function in resfx.ops, which differentiates its formula there"
            )
        found = kernels_for(module, args)
        return found.forward(*args) if found else layout(plain(*args))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        leaves, ctx.spec = pytree.tree_flatten(inputs)
        ctx.save_for_backward(*[x for x in leaves if isinstance(x, Tensor)])
        ctx.rest = [None if isinstance(x, Tensor) else (x,) for x in leaves]

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        args = pytree.tree_unflatten([next(saved) if x is None else x[0] for x in ctx.rest], ctx.spec)
        plain_torch = torch.is_grad_enabled() or transforming()
        found = None if plain_torch else kernels_for(module, (*args, grad), args)
        return found.gradients(grad, *args) if found else _pull_back(formula, grad, args)

    schema = torch.library.infer_schema(formula, mutates_args=())
    operator = torch.library.custom_op(f"resfx::{name}", run, mutates_args=(), schema=schema)
    operator.register_fake(lambda *args: layout(formula(*args)))
    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_vmap(lambda info, axes, *args: _one_by_one(operator, info.batch_size, axes, args))

    def call(*args: Any) -> Tensor:
        if node is not None:
            if keeps_one_node():
                return operator(*args)
            if (done := node(*args)) is not None:
                return done
        first = args[0] if isinstance(args[0], Tensor) else args[0][0]
        if not at_kernels(first) or transforming() or kernels_for(module, args) is None:
            return outside(*args)
        return operator(*args)

    call.__name__, call.__doc__ = name, formula.__doc__
    return call


def kernels_for(module: str, tensors: Any, args: tuple[Any, ...] | None = None) -> ModuleType | None:
    """The Triton kernels in a module of :mod:`resfx.ops`; ``None`` where they cannot run on these arguments, or plain
    torch is quicker on this card.

    They take tensors proper, all on one device: what a subclass stands for (a shard, a fake tensor in a trace), plain
    torch knows.

    Args:
        module: its name there, such as ``delta.triton``.
        tensors: where to look for tensors: the arguments, and more.
        args: the arguments, where those are not all.
    """
    device, found = None, []
    for x in pytree.tree_leaves(tensors):
        if isinstance(x, Tensor):
            device = device or x.device
            plain = type(x) in (Tensor, torch.nn.Parameter) and not is_legacy_batchedtensor(x)
            if x.device.type not in KERNEL_DEVICES or x.device != device or not plain:
                return None
            found.append(x)
    kernels = _kernel_module(module) if found and chosen(module, found) == "triton" else None
    return kernels if kernels and kernels.supported(*(tensors if args is None else args)) else None


@functools.cache
def _kernel_module(module: str) -> ModuleType | None:
    """The one place that imports Triton, when the first CUDA tensor comes."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f"{__package__}.{module}")


def _one_by_one(operator: Callable[..., Tensor], size: int, axes: tuple[Any, ...], args: Any) -> tuple[Tensor, int]:
    """The vmap rule of a registered operator: who calls it knows that it is there, and wants it called."""
    leaves, spec = pytree.tree_flatten(args)
    along = pytree.tree_leaves(axes)
    pick = lambda i: [x if axis is None else x.select(axis, i) for x, axis in zip(leaves, along, strict=True)]
    return torch.stack([operator(*pytree.tree_unflatten(pick(i), spec)) for i in range(size)]), 0


def _pull_back(formula: Callable[..., Tensor], grad: Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Gradients of a formula for all its arguments, as autograd finds them; they can be differentiated again."""
    leaves, spec = pytree.tree_flatten(args)
    at = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()]

    def call(*tensors: Tensor) -> Tensor:
        full = list(leaves)
        for i, tensor in zip(at, tensors, strict=True):
            full[i] = tensor
        return formula(*pytree.tree_unflatten(full, spec))

    pull: Any = torch.func.vjp(call, *[leaves[i] for i in at])[1]
    found = dict(zip(at, pull(grad), strict=True))
    return pytree.tree_unflatten([found.get(i) for i in range(len(leaves))], spec)
