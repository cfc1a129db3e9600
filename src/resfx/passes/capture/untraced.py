"""Modules whose inside no trace can follow: each of their calls is one operator, with what a real run gave back.

Whatever a method leaves alone is called as the user's own module in the end, so its inside need not be a graph. This
holds for a module that adds nothing to a stream: it is run for real on the example, and refused where it adds one of
its inputs to something of the same shape. The operator is never run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from resfx._torch import TorchDispatchMode, is_fake, is_transformed, writes_to
from resfx.errors import CaptureError
from resfx.passes.preserve import watched_run

from .calls import Call, unbind
from .clone import clone_tree
from .structure import Flattener, Template, build, innermost
from .trial import left_as_it_was

_ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@torch.library.custom_op("resfx::untraced", mutates_args=())
def untraced(xs: list[torch.Tensor], module: str, gives: str, why: str) -> list[torch.Tensor]:
    """What a call of ``module`` gives back.

    Args:
        gives: of each tensor its type, its device, and its sizes: numbers, or the input and axis that have that size.
        why: what the trace could not follow.
    """
    raise RuntimeError(f"the inside of {module} is no graph: {why}")


@untraced.register_fake
def _(xs: list[torch.Tensor], module: str, gives: str, why: str) -> list[torch.Tensor]:
    return [
        torch.empty([n if isinstance(n, int) else xs[n[0]].shape[n[1]] for n in sizes],
                    dtype=getattr(torch, kind), device=device)
        for kind, device, sizes in json.loads(gives)
    ]  # fmt: skip


UNTRACED = torch.ops.resfx.untraced.default


@dataclass(frozen=True)
class Seen:
    """One call of a module in a real run: sizes of the tensors it was handed, and what it gave back."""

    given: list[tuple[int, ...]]
    result: Template
    leaves: list[tuple[str, str, tuple[int, ...]]]


@dataclass
class Untraced:
    """Modules taken as they are, and why.

    Attributes:
        calls: of each path, its calls in a real run, in order.
        why: of each path.
    """

    calls: dict[str, list[Seen]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def stand_in(self, clone: nn.Module) -> None:
        """Let the modules of a copy of the tree give back what they gave, without running their code."""
        for path, calls in self.calls.items():
            module = clone.get_submodule(path)
            module.__dict__["forward"] = self._forward(path, iter(calls))

    def _forward(self, path: str, calls: Iterator[Seen]) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            flat = Flattener()
            flat.flatten((args, kwargs))
            tensors = [x for x in flat.leaves if isinstance(x, torch.Tensor)]
            seen = next(calls, None)
            if seen is None or [x.dim() for x in tensors] != [len(s) for s in seen.given]:
                raise _unlike(path, self.why[path], "it is called otherwise in a trace than in a run")
            gives = [(k, d, [_size(n, i, s, seen, tensors) for i, n in enumerate(s)]) for k, d, s in seen.leaves]
            if any(n is None for _, _, sizes in gives for n in sizes):
                raise _unlike(path, self.why[path], "what gives its result the size it has cannot be told")
            return build(seen.result, untraced(tensors, path, json.dumps(gives), self.why[path]))

        return forward


def _size(size: int, axis: int, sizes: tuple[int, ...], seen: Seen, tensors: list[torch.Tensor]) -> Any:
    """Which size of its arguments a size of a result is; ``None`` where that cannot be told."""
    open_ = [
        (i, j) for i, x in enumerate(tensors) for j, n in enumerate(x.shape)
        if isinstance(n, torch.SymInt) and seen.given[i][j] == size
    ]  # fmt: skip
    for i, j in open_:  # where it stands in an argument of that rank
        if j == axis and tensors[i].dim() == len(sizes):
            return [i, j]
    names = {str(tensors[i].shape[j]) for i, j in open_}
    if len(names) == 1:
        return list(open_[0])
    fixed = any(n == size for i, x in enumerate(tensors) for n in x.shape if isinstance(n, int))
    return size if not names and (fixed or size == 1) else None


def observe(tree: nn.Module, signature: inspect.Signature, call: Call, why: Mapping[str, str]) -> Untraced | None:
    """Run a call for real and keep what some modules gave back; ``None`` where they cannot be taken as they are."""
    leaves = call.leaves if call.given is None else call.given
    if any(t.is_meta or is_fake(t) or is_transformed(t) for t in [*leaves, *tree.parameters(), *tree.buffers()]):
        return None

    def run() -> Untraced | None:
        args, kwargs = unbind(signature, call.arguments([leaf.detach().clone() for leaf in leaves]))
        watch = _Watch(clone_tree(tree), why)
        try:
            with torch.no_grad(), watch:
                watch.tree(*args, **kwargs)
        except Exception:  # whatever the model raises is told when it is tried by itself
            return None
        return Untraced(watch.calls, dict(why)) if all(watch.calls.values()) else None

    return watched_run(tree, partial(left_as_it_was, tree), run)


class _Refused(Exception):
    """A module adds to a stream, writes into what it is handed, or gives back what is no tensor."""


class _Watch(TorchDispatchMode):
    """Sees every add of the modules watched, and what they are handed and give back."""

    def __init__(self, tree: nn.Module, paths: Mapping[str, str]) -> None:
        super().__init__()
        self.tree = tree
        self.calls: dict[str, list[Seen]] = {path: [] for path in paths}
        self._open: list[tuple[list[torch.Tensor], list[int]]] = []
        for path in paths:
            for name, module in tree.get_submodule(path).named_modules():
                module.register_forward_pre_hook(self._begin, with_kwargs=True)
                module.register_forward_hook(
                    lambda m, a, k, r, path=path, top=not name: self._end(path if top else None, a, k, r),
                    with_kwargs=True, always_call=False,
                )  # fmt: skip

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ADDS and self._open and result.is_floating_point():
            terms = [x for x in args[:2] if isinstance(x, torch.Tensor) and x.shape == result.shape and x.dim() > 1]
            given = {x.data_ptr() for frame, _ in self._open for x in frame}
            if len(terms) == 2 and any(x.data_ptr() in given for x in terms):
                raise _Refused
        return result

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        flat = Flattener()
        flat.flatten((args, kwargs))
        tensors = [x for x in flat.leaves if isinstance(x, torch.Tensor)]
        self._open.append((tensors, [writes_to(x) for x in tensors]))

    def _end(self, path: str | None, args: Any, kwargs: Any, result: Any) -> None:
        given, versions = self._open.pop()
        if path is None:
            return
        before, after = Flattener(), Flattener()
        before.flatten((args, kwargs))
        template = after.flatten(result)
        written = [x for x, version in zip(given, versions, strict=True) if writes_to(x) != version]
        if before.objects or after.objects or written or not given or not after.leaves or _numbers(template):
            raise _Refused
        leaves = [(str(x.dtype).removeprefix("torch."), str(x.device), tuple(x.shape)) for x in after.leaves]
        self.calls[path].append(Seen([tuple(x.shape) for x in given], template, leaves))


def _numbers(template: Template) -> bool:
    """Whether a result has numbers: they may be another time's."""
    return any(
        part[0] == "int" or (part[0] == "const" and part[1] in (int, float, complex)) for part in innermost(template)
    )


def _unlike(path: str, why: str, found: str) -> CaptureError:
    return CaptureError(f"cannot take {path} as it is, whose inside cannot be traced ({why})", found,
                        "an example whose sizes differ from each other, or a part of the model")  # fmt: skip


def alike(tree: nn.Module, path: str) -> list[str]:
    """The modules of one class, by path: what one of them does, all of them do."""
    cls = type(tree.get_submodule(path))
    return [n for n, m in tree.named_modules() if type(m) is cls and n]
