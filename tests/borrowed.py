"""Every name that is borrowed of torch and transformers: what stops working without it, and whether it is there.

Nothing here imports the library, so that this also answers where a missing name keeps it from being imported.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

SOURCE = Path(__file__).parents[1] / "src" / "resfx"
LENDERS = {"torch": "_torch", "transformers": "runtime/huggingface.py"}


@dataclass(frozen=True)
class Borrowed:
    """One name.

    Attributes:
        name: where it is found; of an attribute that objects get when they are made, its class and name.
        through: the function or name of ours that it is reached through.
        breaks: what stops working without it.
        probe: whether it is there; by default, whether ``name`` leads anywhere.
    """

    name: str
    through: str
    breaks: str
    probe: Callable[[], bool] | None = None

    @property
    def lender(self) -> str:
        """The package it is borrowed of."""
        return self.name.split(".")[0]

    def there(self) -> bool:
        """Whether the installed version has it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (self.probe or functools.partial(leads_somewhere, self.name))()


def leads_somewhere(name: str) -> bool:
    """Whether a dotted name can be imported and looked up."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        try:
            functools.reduce(getattr, parts[size:], found)
        except AttributeError:
            return False
        return True
    return False


def _has(make: Callable[[], object], *names: str) -> Callable[[], bool]:
    return lambda: all(hasattr(make(), name) for name in names)


@functools.cache
def _program() -> object:
    return torch.export.export(nn.Identity(), (torch.ones(2),))


@functools.cache
def _recomputing() -> list[dict[str, object]]:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8, n_positions=8, bos_token_id=0, eos_token_id=0)
    host = GPT2Model(config)
    host.gradient_checkpointing_enable()
    return [vars(m) for m in host.modules()]


def _collects() -> bool:
    from transformers import LlamaConfig, LlamaModel

    host = LlamaModel(LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=8))
    host(torch.ones(1, 2, dtype=torch.long), output_hidden_states=True)
    return "_output_capturing_hooks_installed" in vars(host)


def _chooses() -> bool:
    from transformers import LlamaConfig

    return "_attn_implementation_internal" in vars(LlamaConfig())


def _distributes() -> bool:
    from torch.distributed.tensor import distribute_module

    return "_distribute_module_applied" in distribute_module.__code__.co_names


def _renames() -> bool:
    from transformers.utils.deprecation import deprecate_kwarg

    forward = deprecate_kwarg("old", version="99.0", new_name="new")(lambda new: None)
    return "deprecate_kwarg." in forward.__code__.co_qualname and {"old_name", "new_name"} <= {
        *forward.__code__.co_freevars
    }


def _cache() -> object:
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
    return cache


_linear = functools.partial(nn.Linear, 1, 1)
_operator = lambda: torch.ops.aten.add.Tensor
_compiled = lambda: torch.compile(nn.Identity())
_first_layer = lambda: _cache().layers[0]


def _on_modules(name: str, through: str, breaks: str) -> Borrowed:
    return Borrowed(f"torch.nn.Module.{name}", through, breaks, _has(_linear, name))


def _on_operators(name: str, through: str, breaks: str) -> Borrowed:
    return Borrowed(f"torch._ops.OpOverload.{name}", through, breaks, _has(_operator, name))


def _on_layers(name: str, through: str) -> Borrowed:
    breaks, owner = "gradient_checkpointing_enable() on a rewritten model", "transformers.GradientCheckpointingLayer"
    return Borrowed(f"{owner}.{name}", through, breaks, lambda: any(name in held for held in _recomputing()))


_WATCHED = "seeing that somebody's hook watches a projection"
_GUARDS = "guards of a capture: telling calls apart"
_COMPILED = "compiled rows of a comparison"
_KEPT = "leaving parameters as they were"
_WHOLE = "torch.compile(fullgraph=True) of a call not seen before"
_MARKS = "marking the calls inside a capture"
_TRACES = "torch.fx.experimental.proxy_tensor"
_MIXERS = "decoding with inserted mixers"

TABLE = [
    Borrowed("torch._ops.OpOverload", "OpOverload", "telling torch's operators from other functions in a graph"),
    Borrowed("torch.fx.experimental.symbolic_shapes.SYMPY_INTERP", "SYMPY_INTERP", _GUARDS),
    Borrowed("torch.utils._pytree", "pytree", "arguments and results as trees; operators with kernels"),
    Borrowed("torch.utils._python_dispatch.TorchDispatchMode", "TorchDispatchMode", "operator counts of a comparison"),
    Borrowed("torch.utils._sympy.printers.PythonPrinter", "PythonPrinter", _GUARDS),
    Borrowed("torch._C._functorch.is_legacy_batchedtensor", "is_legacy_batchedtensor", "is_grads_batched=True on CUDA"),
    Borrowed("torch._C._are_functorch_transforms_active", "transforming", "operators under torch.func"),
    Borrowed(
        "torch.distributed.tensor.experimental._context_parallel._attention._replaced_functions",
        "positions_are_split", "refusing mixers over positions under context_parallel",
    ),
    Borrowed("torch.nn.Module._distribute_module_applied", "is_distributed",
             "refusing norms without gains under SequenceParallel", _distributes),
    Borrowed("torch.autograd.forward_ad._current_level", "forward_mode", "operators in forward mode"),
    Borrowed("torch.nn.modules.conv._ConvNd", "ConvNd", "convolutions of fx-traced models"),
    Borrowed("torch.nn.modules.batchnorm._NormBase", "NormBase", "norms of fx-traced models"),
    _on_modules("_modules", "held_modules", "putting new modules into a tree"),
    _on_modules("_parameters", "held_parameters", "moving a rewritten model by .to()"),
    _on_modules("_buffers", "held_buffers", "leaving buffers as they were"),
    _on_modules("_forward_hooks", "bare_parameters", _WATCHED),
    Borrowed("torch.nn.modules.module._global_forward_hooks", "bare_parameters", _WATCHED),
    Borrowed("torch.nn.modules.module._global_forward_pre_hooks", "bare_parameters", _WATCHED),
    _on_modules("_forward_pre_hooks", "pre_hooks", _WATCHED),
    _on_modules("_backward_hooks", "has_hooks", _WATCHED),
    _on_modules("_backward_pre_hooks", "has_hooks", _WATCHED),
    _on_modules("_call_impl", "call_with_hooks", "compile_blocks"),
    _on_modules("_compiled_call_impl", "set_compiled_call", "compile_blocks"),
    Borrowed("torch._dynamo.OptimizedModule._orig_mod", "compiled_from", "refusing a model that is compiled already",
             _has(_compiled, "_orig_mod")),
    Borrowed("torch._C._set_grad_enabled", "set_grad_enabled", "models with torch.no_grad() inside"),
    Borrowed("torch.amp.autocast_mode._enter_autocast", "enter_autocast", "models with autocast inside"),
    Borrowed("torch.amp.autocast_mode._exit_autocast", "exit_autocast", "models with autocast inside"),
    _on_operators("_schema", "schema_of", "names of operators: finding any residual add"),
    _on_operators("_overloadname", "overload_name", "models that write over a result that autograd keeps"),
    Borrowed("torch.fx.Graph._codegen", "share_codegen", "captured programs", _has(fx.Graph, "_codegen")),
    Borrowed("torch.compiler._is_exporting_flag", "is_exporting", "operators compiled, operators exported"),
    Borrowed("torch.compiler._is_compiling_flag", "denying", "models that ask whether they are compiled"),
    Borrowed("torch.export.ExportedProgram._guards_code", "guards_of", _GUARDS, _has(_program, "_guards_code")),
    Borrowed("torch._subclasses.fake_tensor.FakeTensorMode", "fake_mode", "fx graphs without shapes"),
    Borrowed("torch._subclasses.fake_tensor.FakeTensor", "is_fake", "models built without values"),
    Borrowed("torch._C._functorch.is_functorch_wrapped_tensor", "is_transformed",
             "a call not seen before under torch.func"),
    Borrowed("torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack", "outside_of_traces",
             "a call not seen before under torch.func"),
    Borrowed("torch._guards.tracing", "outside_of_traces", "a call not seen before while something is traced"),
    Borrowed("torch.utils._python_dispatch._disable_current_modes", "outside_of_traces",
             "a call not seen before while something is traced"),
    Borrowed("torch.overrides._get_current_function_mode_stack", "outside_of_traces",
             "a call not seen before while something is traced"),
    Borrowed("torch.overrides._pop_mode", "outside_of_traces",
             "a call not seen before while something is traced"),
    Borrowed("torch.overrides._push_mode", "outside_of_traces",
             "a call not seen before while something is traced"),
    Borrowed("torch.utils._device.DeviceContext", "outside_of_traces",
             "a call not seen before while something is traced"),
    Borrowed(f"{_TRACES}.get_proxy_mode", "traced_mark", _MARKS),
    Borrowed(f"{_TRACES}.get_proxy_slot", "traced_mark", _MARKS),
    Borrowed(f"{_TRACES}.set_proxy_slot", "traced_mark", _MARKS),
    Borrowed(f"{_TRACES}.disable_proxy_modes_tracing", "traced_mark", _MARKS),
    Borrowed("torch._C.DisableTorchFunction", "traced_mark", _MARKS),
    Borrowed("torch.Tensor._version", "writes_to", "models with modules that cannot be traced"),
    Borrowed("torch.utils._python_dispatch.is_traceable_wrapper_subclass", "memory_of", _KEPT),
    Borrowed("torch.Tensor._backward_hooks", "tensor_hooks", _KEPT),
    Borrowed("torch.Tensor._post_accumulate_grad_hooks", "tensor_hooks", _KEPT),
    Borrowed("torch._dynamo.convert_frame.compile_lock", "tracing", "captures while other threads trace or compile"),
    Borrowed(f"{_TRACES}._ModuleStackTracer", "tracing", "captures while other threads call modules"),
    Borrowed("torch.export._trace", "own_export", "failed captures that print nothing"),
    Borrowed("torch.export._trace._EXPORT_FLAGS", "own_export", "torch.export of a call not seen before"),
    Borrowed("torch.export._trace._ignore_backend_decomps", "own_export", "captures while other threads compute"),
    Borrowed("torch.export._trace._EXPORT_MODULE_HIERARCHY", "own_export", "torch.export of a call not seen before"),
    Borrowed("torch.onnx._internal.exporter._registration", "exporter_log", "quiet exports to ONNX",
             lambda: importlib.util.find_spec("torch.onnx._internal.exporter._registration") is not None),
    Borrowed("torch._C._len_torch_dispatch_stack", "is_watched", "C++ kernels in eager mode"),
    Borrowed("torch._C._is_tracing", "is_watched", "C++ kernels in eager mode"),
    Borrowed("torch._C._is_any_autocast_enabled", "any_autocast", "telling calls under autocast from others"),
    Borrowed("torch._dynamo.graph_break", "break_graph", "a call not seen before under torch.compile"),
    Borrowed("torch._dynamo.comptime.comptime", "at_compile_time", _WHOLE),
    Borrowed("torch._dynamo.comptime.ComptimeVar._i_will_not_complain_if_bc_breaks_VariableTracker", "local_value",
             _WHOLE),
    Borrowed("torch._dynamo.variables.ConstDictVariable", "local_value", _WHOLE),
    Borrowed("torch._dynamo.lookup_backend", "compile_backend", _COMPILED),
    Borrowed("torch._inductor.compile_fx", "fresh_inductor_cache", _COMPILED),
    Borrowed("torch._inductor.utils.fresh_cache", "fresh_inductor_cache", _COMPILED),
    Borrowed("transformers.PretrainedConfig._attn_implementation_internal", "DECIDES_RESULTS",
             "a new capture after set_attn_implementation()", _chooses),
    Borrowed("transformers.PreTrainedModel._output_capturing_hooks_installed", "traced_plainly",
             "output_hidden_states=True where generated code holds the layers", _collects),
    _on_layers("_gradient_checkpointing_func", "traced_plainly"),
    Borrowed("transformers.masking_utils.create_causal_mask", "kept_functions", "fast attention in rewritten models"),
    Borrowed("transformers.utils.deprecation.deprecate_kwarg", "renamed_arguments",
             "one variant for an argument under its older and its newer name", _renames),
    Borrowed("transformers.PreTrainedModel._init_weights", "starting_new_modules", "init_weights() after a rewrite"),
    Borrowed("transformers.PreTrainedModel._initialize_weights", "starting_new_modules", "init_weights() of shards"),
    Borrowed("transformers.PreTrainedModel._from_config", "from_config", "models named by a config folder"),
    Borrowed("transformers.PreTrainedModel._keys_to_ignore_on_load_unexpected", "from_folder",
             "resfx.load(folder) of what save_pretrained wrote: it would report the new weights as left out"),
    Borrowed("transformers.Cache.layers", "CACHE_LAYERS", _MIXERS, _has(_cache, "layers")),
    Borrowed("transformers.DynamicLayer.keys", "LAYER_KEYS", _MIXERS, _has(_first_layer, "keys")),
]  # fmt: skip
"""In the order of the files."""


def files_of(lender: str) -> list[Path]:
    """The files of ours that may borrow of a package."""
    at = SOURCE / LENDERS[lender]
    return sorted(at.rglob("*.py")) if at.is_dir() else [at]


def private_names(path: Path) -> set[str]:
    """The private names in a file: of imports, of attributes, and of attributes asked for by a string."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found.update((node.module or "").split("."), *(a.name.split(".") for a in node.names))
        elif isinstance(node, ast.Import):
            found.update(*(a.name.split(".") for a in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found.update(node.value.split("."))
    return {n for n in found if n.startswith("_") and not n.startswith("__")}


def users(through: str) -> list[str]:
    """The files of ours that import a name from those that borrow."""
    return sorted({file for file, name in _imports() if name == through})


@functools.cache
def _imports() -> list[tuple[str, str]]:
    """Every name that a file of ours imports from those that borrow."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and {"_torch", "huggingface"} & {*(node.module or "").split(".")}:
                found += [(path.relative_to(SOURCE).as_posix(), alias.name) for alias in node.names]
    return found
