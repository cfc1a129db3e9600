"""A structural copy of a module tree to trace: whatever a traced forward writes stays in the copy.

Module objects, the containers they hold and their plain attributes are new; parameters and buffers are the same tensors
(a trace looks at fake ones). Forward hooks are left behind: they act when the real modules are called. Modules that a
rewrite has changed are copied as what they were.
"""

from __future__ import annotations

import copy
import threading
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

TRACING = threading.RLock()
"""Held while anything is traced: ``torch.export`` and what surrounds it keep global state."""

_HOOKS = frozenset(k for k in vars(nn.Module()) if k.endswith("_hooks") or "_hooks_" in k)
_KEPT_AS_IS = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Tensor,
               types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # fmt: skip


def class_before(module: nn.Module) -> type:
    """The class of a module before any rewrite."""
    return getattr(type(module), "_resfx_before", type(module))


def clone_tree(tree: nn.Module) -> nn.Module:
    """The tree as new module objects over the same tensors, without hooks and without what rewrites added."""
    modules = [m for n, m in tree.named_modules() if n != "resfx" and not n.startswith("resfx.")]
    memo: dict[int, Any] = {id(t): t for m in modules for t in (*_tensors(m._parameters), *_tensors(m._buffers))}
    twins = {}
    for module in modules:
        twin = object.__new__(class_before(module))
        twins[id(module)] = memo[id(module)] = twin
    for module in modules:
        _fill(twins[id(module)], module, memo)
    return twins[id(tree)]


def _tensors(entries: Mapping[str, torch.Tensor | None]) -> list[torch.Tensor]:
    return [t for t in entries.values() if t is not None]


def _fill(twin: nn.Module, module: nn.Module, memo: dict[int, Any]) -> None:
    state = twin.__dict__
    for name, value in vars(module).items():
        if name.startswith("_resfx"):
            continue
        if name in _HOOKS:
            state[name] = type(value)()
        elif name in ("_parameters", "_buffers"):
            state[name] = dict(value)
        elif name == "_modules":
            state[name] = {k: memo.get(id(m), m) for k, m in value.items() if k != "resfx" or id(m) in memo}
        else:
            state[name] = _own(value, memo)
    for hook in module._forward_pre_hooks.values():
        if _makes_weights(hook):
            twin.register_forward_pre_hook(hook)


def _makes_weights(hook: Any) -> bool:
    """Whether a pre-hook computes the weight its module runs with: old ``weight_norm``, ``spectral_norm``, pruning."""
    return type(hook).__module__.startswith(("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm",
                                             "torch.nn.utils.prune"))  # fmt: skip


def _own(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of an attribute in which modules of the tree are their twins; what cannot be copied is shared."""
    if isinstance(value, _KEPT_AS_IS):
        return value
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # locks, generators, handles: a trace may read them, the copy is not run
        return value
