"""What is borrowed of torch: every name it does not promise, reached through here and nowhere else.

An upgrade of torch that takes a name away breaks this file alone. ``tests/borrowed.py`` has a line for each, with what
stops working without it, and ``docs/versions.md`` says which of the supported versions have it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload, OpOverloadPacket  # the operators that graphs are made of
from torch.fx.experimental import proxy_tensor as proxies  # how a trace ties tensors to nodes
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP  # what guards call, by name
from torch.utils import _pytree as pytree  # arguments and results as trees: torch has no promised name for it
from torch.utils._python_dispatch import TorchDispatchMode  # sees every operator that runs
from torch.utils._sympy.printers import PythonPrinter  # sizes as Python, for guards

# -- in every call of an operator ----------------------------------------------------------------------------------

# Whether a tensor is one of the batched tensors of autograd's ``is_grads_batched``, which no kernel can read.
is_legacy_batchedtensor = torch._C._functorch.is_legacy_batchedtensor
_functorch_active = torch._C._are_functorch_transforms_active
_watchers, _tracing = torch._C._len_torch_dispatch_stack, torch._C._is_tracing
any_autocast = torch._C._is_any_autocast_enabled  # on whatever kind of device


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a ``torch.func`` transform: outside of it nothing can be computed with it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def forward_mode() -> bool:
    """Whether forward-mode differentiation is at work."""
    return torch.autograd.forward_ad._current_level >= 0


def transforming() -> bool:
    """Whether a ``torch.func`` transform or forward-mode differentiation is at work: plain torch is right there."""
    return _functorch_active() or torch.autograd.forward_ad._current_level >= 0


def is_watched() -> bool:
    """Whether somebody wants to see each operator: a dispatch mode, or a trace of ``torch.jit``."""
    return _watchers() > 0 or _tracing()


_tracing_in: int | None = None  # the thread in which a trace of ours is being made


def _elsewhere() -> bool:
    """Whether a trace of ours goes on in another thread: torch's flags are set for all threads then."""
    return _tracing_in is not None and _tracing_in != threading.get_ident()


def is_compiling() -> bool:
    """``torch.compiler.is_compiling()``, of this thread."""
    return torch.compiler.is_compiling() and not _elsewhere()


def break_graph(why: str) -> None:
    """Let a compiler that traces the code at hand compile what comes before, or say why it cannot go on."""
    torch._dynamo.graph_break(msg=why)


def is_exporting() -> bool:
    """``torch.compiler.is_exporting()`` of this thread; Dynamo of torch 2.11 takes it for true in all it compiles."""
    return torch.compiler._is_exporting_flag and not _elsewhere()


# -- modules -------------------------------------------------------------------------------------------------------

ConvNd, NormBase = nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase  # what all convolutions, all norms are


def held_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """The dictionary of a module's own submodules: writing to it calls no hook and checks no name."""
    return module._modules


def hold_modules(module: nn.Module, modules: dict[str, nn.Module | None]) -> None:
    """Give a module another dictionary of submodules; whoever shares the old one keeps it."""
    module.__dict__["_modules"] = modules


def held_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The dictionary of a module's own parameters: those that are ``None``, too."""
    return module._parameters


def held_buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """The dictionary of a module's own buffers, which a replaced buffer is put back into; none before there are any."""
    return vars(module).get("_buffers", {})


def bare_parameters(module: Any, cls: type[nn.Module]) -> dict[str, nn.Parameter | None] | None:
    """The module's own parameters, if calling it without gradients runs the ``forward`` of just this class on them and
    nothing besides: no hook, no adapter, no parametrisation. A kernel may then take them in the module's place."""
    if type(module) is not cls or _has_forward_hooks(module) or "forward" in module.__dict__:
        return None
    return module._parameters


def has_hooks(module: nn.Module) -> bool:
    """Whether anything watches or changes the module's calls."""
    return _has_forward_hooks(module) or bool(module._backward_hooks or module._backward_pre_hooks)


def _has_forward_hooks(module: nn.Module) -> bool:
    everybody: Any = nn.modules.module  # hooks of all modules
    own = module._forward_hooks or module._forward_pre_hooks
    return bool(own or everybody._global_forward_hooks or everybody._global_forward_pre_hooks)


# The keys of a module's ``__dict__`` that hold hooks or say how they are called.
HOOKS = frozenset(k for k in vars(nn.Module()) if "hooks" in k)


def pre_hooks(module: nn.Module) -> list[Any]:
    """What runs before a module's forward."""
    return list(module._forward_pre_hooks.values())


def call_with_hooks(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What calling a module does when nothing was compiled: its hooks and its forward."""
    return module._call_impl(*args, **kwargs)


def set_compiled_call(module: nn.Module, call: Callable[..., Any]) -> None:
    """Let calls of a module run ``call``, as ``nn.Module.compile`` does."""
    module._compiled_call_impl = call  # type: ignore[assignment]


def compiled_from(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile`` wrapped, if it made this one. Asking its class would import the compiler."""
    return getattr(module, "_orig_mod", None)


# -- graphs --------------------------------------------------------------------------------------------------------

# Nodes of a captured graph: they need to be these functions, which every tracer knows.
set_grad_enabled = torch._C._set_grad_enabled
enter_autocast, exit_autocast = torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast


def schema_of(overload: Any) -> Any:
    """The schema of an operator: its name, its arguments, and which of them it writes or returns views of."""
    return overload._schema


def overload_name(overload: OpOverload) -> str:
    """``"Tensor"`` of ``aten.add.Tensor``."""
    return overload._overloadname


def share_codegen(graph: fx.Graph, source: fx.Graph) -> None:
    """Let a graph take and return what ``source`` does: an exported graph's pytrees live in its code generator."""
    graph.set_codegen(source._codegen)


# -- tracing -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def denying(denied: Sequence[str]) -> Iterator[None]:
    """Inside, ``torch.compiler.is_exporting()`` or ``is_compiling()`` say no, so that code takes its eager way.

    Args:
        denied: ``"exporting"``, ``"compiling"``, both or none.
    """
    compiler: Any = torch.compiler
    before = compiler._is_exporting_flag, compiler._is_compiling_flag
    if "exporting" in denied:
        compiler._is_exporting_flag = False
    if "compiling" in denied:
        compiler._is_compiling_flag = False
    try:
        yield
    finally:
        compiler._is_exporting_flag, compiler._is_compiling_flag = before


def guards_of(program: torch.export.ExportedProgram) -> list[str]:
    """What a trace assumed of its inputs, as Python expressions: the program checks it only on its own way."""
    return list(program._guards_code or [])


_MARK = torch.ops.aten.squeeze.dims  # of no axes: a view of the whole, which no model writes that way


def is_mark(node: fx.Node) -> bool:
    """Whether :func:`traced_mark` made a node."""
    return node.target is _MARK and not node.args[1]


def traced_mark(x: Any) -> torch.Tensor:
    """A view of a whole tensor in the trace at hand, for a quarter of what recording an operator costs: the node takes
    its ``val`` from the tensor's own node, and does not say where it was called."""
    mode: Any = proxies.get_proxy_mode()
    known: Any = None if mode is None else proxies.get_proxy_slot(x, mode.tracer, None)
    if known is None or known.constant is not None:  # its values may be asked for
        return _MARK(x, [])
    tracer, source = mode.tracer, known.proxy.node
    told, tracer.record_stack_traces = tracer.record_stack_traces, False
    try:
        node = tracer.create_node("call_function", _MARK, (source, []), {}, name="mark")
    finally:
        tracer.record_stack_traces = told
    node.meta |= {k: source.meta[k] for k in ("val", "tensor_meta") if k in source.meta}
    with torch._C.DisableTorchFunction(), proxies.disable_proxy_modes_tracing():
        twin = _MARK(x, [])
    proxies.set_proxy_slot(twin, tracer, type(known)(tracer.proxy(node), None))
    return twin


def writes_to(tensor: torch.Tensor) -> int:
    """How often a tensor was written into."""
    return tensor._version


def fake_mode() -> Any:
    """A mode in which tensors have shapes and types but no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def exporter_log() -> logging.Logger:
    """Where ``torch.onnx.export`` complains of operators that it could not register."""
    return logging.getLogger("torch.onnx._internal.exporter._registration")


@contextlib.contextmanager
def _no_function_modes() -> Iterator[None]:
    """Inside, no mode of ``__torch_function__`` acts, as an exporter's that records ``no_grad``; devices stay set."""
    from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
    from torch.utils._device import DeviceContext

    stack = _get_current_function_mode_stack()
    kept = [mode for mode in stack if isinstance(mode, DeviceContext)]
    for _ in stack:
        _pop_mode()
    for mode in kept:
        _push_mode(mode)
    try:
        yield
    finally:
        for _ in kept:
            _pop_mode()
        for mode in stack:
            _push_mode(mode)


@contextlib.contextmanager
def outside_of_traces() -> Iterator[None]:
    """Inside, whatever traces, transforms or records the call at hand sees nothing: for a trace of its own."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch._guards import tracing
    from torch.utils._python_dispatch import _disable_current_modes

    unseen = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)  # checkpointing counts what is saved
    with contextlib.ExitStack() as stack:
        for context in (
            _disable_current_modes(), _no_function_modes(), temporarily_clear_interpreter_stack(), tracing(None),
            torch.inference_mode(False),
        ):  # fmt: skip
            stack.enter_context(context)
        with contextlib.suppress(RuntimeError):  # there are none under torch.func, which forbids them
            stack.enter_context(unseen)
        yield


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a shape and a type but no values."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a trace: it has no values, or stands for one that has none."""
    from torch._subclasses.functional_tensor import FunctionalTensor

    return is_fake(tensor) or isinstance(tensor, FunctionalTensor)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Inside, no other thread traces or compiles, by this library or by ``torch.compile``.

    torch keeps the trace at hand in globals: sizes of a graph that another thread computes with would be recorded in
    it. So graphs whose sizes are open are worked on in here too. What a tracer does to attributes and calls of every
    module of the process, it does in this thread alone.
    """
    global _tracing_in  # held under the lock
    if _tracing_in == threading.get_ident():
        yield
        return
    from torch._dynamo.convert_frame import compile_lock

    tracer: Any = proxies._ModuleStackTracer
    with compile_lock:
        read, call, _tracing_in = tracer.getattr, tracer.call_module, threading.get_ident()
        tracer.getattr = lambda self, name, value, *rest: value if _elsewhere() else read(self, name, value, *rest)
        tracer.call_module = lambda self, module, forward, args, kwargs: (
            forward(*args, **kwargs) if _elsewhere() else call(self, module, forward, args, kwargs)
        )
        try:
            yield
        finally:
            tracer.getattr, tracer.call_module, _tracing_in = read, call, None


@contextlib.contextmanager
def own_export() -> Iterator[None]:
    """Inside, ``torch.export`` prints no graph when it fails, leaves what an export around it keeps in globals, and
    leaves oneDNN and cuDNN to all threads: by these switches of the whole process, other threads' sums round."""
    exporter: Any = importlib.import_module("torch.export._trace")
    names = ("_EXPORT_FLAGS", "_EXPORT_MODULE_HIERARCHY", "_ignore_backend_decomps")
    around = {name: getattr(exporter, name, None) for name in names}
    try:
        exporter.print = lambda *_, **__: None
        exporter._ignore_backend_decomps = contextlib.nullcontext
        yield
    finally:
        vars(exporter).pop("print", None)
        vars(exporter).update(around)


# -- compiling -----------------------------------------------------------------------------------------------------


def compile_backend(name: str) -> Callable[..., Any]:
    """The function behind ``torch.compile(backend=name)``, to be called from a backend of one's own."""
    return torch._dynamo.lookup_backend(name)


@contextlib.contextmanager
def fresh_inductor_cache() -> Iterator[None]:
    """Inside, Inductor finds no kernels on disk: compile times of two models can only then be compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own imports
        from torch._inductor.utils import fresh_cache
    with fresh_cache():
        yield
