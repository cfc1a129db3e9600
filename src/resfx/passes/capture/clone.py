"""A structural copy of a module tree to trace: whatever a traced forward writes stays in the copy.

Module objects, the containers they hold and their plain attributes are new; parameters and buffers are the same tensors
(a trace looks at fake ones). Forward hooks are left behind: they act when the real modules are called. Modules that a
rewrite has changed are copied as what they were.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from resfx._torch import HOOKS, held_buffers, held_parameters, is_traced, is_transformed, pre_hooks
from resfx.runtime.huggingface import COLLECTS

from .forwards import called_forward, rebound
from .split import is_split

_ORDINARY = (torch.Tensor, nn.Parameter, nn.Buffer)
_KEPT_AS_IS = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Tensor,
               types.BuiltinFunctionType, types.ModuleType)  # fmt: skip


OWN_FORWARD = "_own_forward"  # where a rewritten module keeps what was put in the place of its class's forward


def class_before(module: nn.Module) -> Any:
    """The class of a module before any rewrite."""
    return getattr(type(module), "_resfx_before", type(module))


def clone_tree(tree: nn.Module, parts: bool = False) -> nn.Module:
    """The tree as new module objects over the same tensors, without hooks and without what rewrites added.

    Args:
        parts: of a weight that is split over processes, this one's part; else all of it.
    """
    modules = [m for n, m in tree.named_modules() if n != "resfx" and not n.startswith("resfx.")]
    return _copied(modules, class_before, for_a_trace=True, parts=parts)


def copy_sharing_parameters(tree: nn.Module) -> nn.Module:
    """The tree as new module objects over the same parameters: buffers, attributes and hooks are its own."""
    if isinstance(tree, fx.GraphModule):  # what a graph needs beside its modules, it copies itself
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own tree specs warn when copied
            return copy.deepcopy(tree, {id(p): p for p in tree.parameters()})
    return _copied(list(tree.modules()), type, for_a_trace=False)


def original_tree(tree: nn.Module) -> nn.Module:
    """A rewritten tree as it was before, over the same parameters."""
    modules = [m for n, m in tree.named_modules() if n != "resfx" and not n.startswith("resfx.")]
    twin = _copied(modules, class_before, for_a_trace=False)
    for module in twin.modules():
        for name in [k for k in vars(module) if k.startswith("_resfx")]:
            del module.__dict__[name]
    return twin


def _copied(
    modules: list[nn.Module], cls: Callable[[nn.Module], type], for_a_trace: bool, parts: bool = False
) -> nn.Module:
    memo: dict[int, Any] = {}
    scripted = {id(m): m for s in modules if isinstance(s, torch.jit.ScriptModule) for m in s.modules()}
    memo |= {i: Scripted(m) if for_a_trace else m for i, m in scripted.items()}  # it has no Python code to copy
    modules = [m for m in modules if id(m) not in scripted]
    for module in modules:
        twin: nn.Module = object.__new__(cls(module))
        memo[id(module)] = twin
        split = parts and is_split(module)
        for tensor in (*held_parameters(module).values(), *held_buffers(module).values()):
            if tensor is not None and id(tensor) not in memo:
                own = not isinstance(tensor, nn.Parameter)
                if for_a_trace:
                    memo[id(tensor)] = _to_trace(tensor, split)
                else:
                    memo[id(tensor)] = tensor.detach().clone() if own else tensor
        for lent in [t for t in held_parameters(module).values() if t is not None] if for_a_trace else ():
            if not isinstance(memo[id(lent)], nn.Parameter):  # torch.func.functional_call lends plain tensors
                memo[id(lent)] = nn.Parameter(memo[id(lent)].detach(), lent.requires_grad)
    if not for_a_trace:
        for state in [v for m in modules for v in vars(m).values() if type(v) is torch.Tensor and not v.requires_grad]:
            copy.deepcopy(state, memo)  # a cache, a running mean: written in place, by each of the two for itself
    for module in modules:
        _fill(memo[id(module)], module, memo, for_a_trace)
    return memo[id(modules[0])]


def _fill(twin: nn.Module, module: nn.Module, memo: dict[int, Any], for_a_trace: bool) -> None:
    state = twin.__dict__
    for name, value in vars(module).items():
        around = name == "forward" and "_resfx_unit" in vars(module)  # put there since: it is called around its code
        if for_a_trace and (around or name == COLLECTS or name.startswith("_resfx")):
            continue
        if name in ("_parameters", "_buffers"):
            state[name] = {k: memo[id(t)] if t is not None else None for k, t in value.items()}
        elif name == "_modules":
            state[name] = {k: memo[id(m)] if m is not None else None for k, m in value.items()
                           if m is None or id(m) in memo}  # fmt: skip
        elif name in HOOKS and for_a_trace:
            state[name] = type(value)()
        else:
            # A forward may be set on the instance, by the user or by what recomputes blocks.
            ours = name == "forward" and for_a_trace
            own = _own(getattr(value, "_resfx_before", value) if ours else value, memo)
            state[name] = called_forward(own) if for_a_trace and name in ("forward", OWN_FORWARD) else own
    for hook in pre_hooks(module) if for_a_trace else ():
        if _makes_weights(hook):
            twin.register_forward_pre_hook(hook)


def _to_trace(tensor: Any, part: bool = False) -> torch.Tensor:
    """A shard, a quantised or transformed weight and the like stand for a plain tensor; nobody looks at its numbers."""
    if (type(tensor) in _ORDINARY or tensor.is_meta) and not is_transformed(tensor):
        return tensor
    shape = tensor.to_local().shape if part and hasattr(tensor, "placements") else tensor.shape
    plain = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    return nn.Parameter(plain, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else plain


def _makes_weights(hook: Any) -> bool:
    """Whether a pre-hook computes the weight its module runs with: old ``weight_norm``, ``spectral_norm``, pruning."""
    return type(hook).__module__.startswith(("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm",
                                             "torch.nn.utils.prune"))  # fmt: skip


def _own(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of an attribute whose modules and tensors of the tree are the copy's; what cannot be copied is shared."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, types.FunctionType):
        return rebound(value, memo)
    if isinstance(value, types.MethodType) and isinstance(value.__func__, types.FunctionType):
        return types.MethodType(rebound(value.__func__, memo), _own(value.__self__, memo))
    if isinstance(value, functools.partial):
        named = {k: _own(v, memo) for k, v in value.keywords.items()}
        return functools.partial(_own(value.func, memo), *(_own(v, memo) for v in value.args), **named)
    if isinstance(value, _KEPT_AS_IS):
        return value
    if isinstance(value, torch.Generator):
        return value.clone_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own tree specs warn when copied
            return copy.deepcopy(value, memo)
    except Exception:  # locks, handles
        return value


class Scripted(nn.Module):
    """A module of TorchScript in a tree to trace, which cannot see into it."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.call = module.__call__

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives, outside of a trace."""
        if any(isinstance(x, torch.Tensor) and is_traced(x) for x in (*args, *kwargs.values())):
            raise TypeError("TorchScript has no Python code")
        return self.call(*args, **kwargs)


def signature_of(module: nn.Module) -> inspect.Signature:
    """The signature of what a module's code is made of, without ``self``: of what was put in the place of its class's
    ``forward`` before it was rewritten, if anything was."""
    if "forward" in vars(module) and "_resfx_unit" not in vars(module):
        return inspect.signature(vars(module)["forward"])
    return without_self(inspect.signature(class_before(module).forward))


def without_self(signature: inspect.Signature) -> inspect.Signature:
    """The signature as a caller of the bound method sees it."""
    return signature.replace(parameters=list(signature.parameters.values())[1:])  # whatever it is called
