"""A rewritten model run block by block: equal blocks share a compiled function, or compute activations again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from resfx._torch import is_exporting
from resfx.errors import ResfxError
from resfx.ops.chunks import compiling_chunks
from resfx.passes.fold.outline import Key, Outlined, Regrouped, outline
from resfx.passes.fold.regroup import segments_of

from .huggingface import host_function, is_recomputing


def never_traced(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compiler.disable`` at the time of the call: the decorator itself would import the compiler."""

    @functools.wraps(fn)
    def outside(*args: Any, **kwargs: Any) -> Any:
        return torch.compiler.disable(fn)(*args, **kwargs)

    return outside


def compile_blocks(module: Any, **options: Any) -> Any:
    """Compile a rewritten module block by block: equal blocks share one compiled function.

    Compile time then depends on the number of *different* blocks, not on the depth. What stands outside the blocks
    (embeddings, masks, head, loss, reads over depth) is compiled in functions of its own. Calling ``torch.compile`` on
    the whole module instead still compiles one graph of everything.

    Args:
        module: what :func:`resfx.rewrite` returned; changed in place, like ``nn.Module.compile``.
        options: of ``torch.compile``: ``backend``, ``mode``, ``dynamic``, ``fullgraph``, ...

    Returns:
        ``module``. Training and evaluation, other batches and lengths, caches and gradients work as before.

    Raises:
        ResfxError: if the module is not a rewritten one.
    """
    _blocks_of(module, "compile").compile(options)
    return module


def checkpoint_blocks(module: Any, every: int = 1, **options: Any) -> Any:
    """Keep only the inputs of a rewritten module's blocks for the backward pass and compute the rest again there.

    Acts in training mode while gradients are recorded. Hugging Face models have ``gradient_checkpointing_enable()``
    (``activation_checkpointing_enable()``) of their own, which does the same to a rewritten model.

    Args:
        module: what :func:`resfx.rewrite` returned; changed in place.
        every: recompute every ``every``-th block only; 0 for none.
        options: of ``torch.utils.checkpoint.checkpoint``; ``use_reentrant`` is false unless given. Random numbers
            (dropout) are the same again in the backward pass unless ``preserve_rng_state=False``.

    Returns:
        ``module``.

    Raises:
        ResfxError: if the module is not a rewritten one.
        ValueError: if ``every`` is negative.
    """
    if every < 0:
        raise ValueError(f"every must be at least 0, not {every}")
    _blocks_of(module, "checkpoint").checkpoint(every, options)
    return module


def _blocks_of(module: Any, verb: str) -> Blocks:
    runtime = getattr(module, "_resfx", None)
    if runtime is None:
        raise ResfxError(
            f"cannot {verb} the blocks of a {type(module).__name__}", "it is not a rewritten module",
            "pass what resfx.rewrite returned",
        )  # fmt: skip
    return runtime.blocks


@dataclass(frozen=True)
class Plan:
    """What a call does with the blocks of its graph.

    Attributes:
        compiled: whether every segment runs compiled.
        recomputed: names of the blocks whose activations are computed again in the backward pass.
        recompute: what does that, called with a function and its arguments.
    """

    compiled: bool
    recomputed: tuple[str, ...]
    recompute: Callable[..., Any] | None


@dataclass(eq=False)
class Blocks:
    """How the blocks of a rewritten module are run. It holds no parameters.

    Attributes:
        options: of ``torch.compile``; ``None`` for eager.
        every, recompute: every how many blocks activations are recomputed, 0 for none, and what does it.
        functions: functions of segments by their code.
        compiled: what ``torch.compile`` made of them.
        chunks: functions of chunks of long lists, by length.
        regrouped: the graphs of variants, regrouped.
        runners: what runs a variant by a plan.
    """

    options: dict[str, Any] | None = None
    every: int = 0
    recompute: Callable[..., Any] | None = None
    functions: dict[Key, Callable[..., Any]] = field(default_factory=dict)
    compiled: dict[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    chunks: dict[tuple[Callable[..., Any], int], Callable[..., Any]] = field(default_factory=dict)
    regrouped: dict[Any, Regrouped] = field(default_factory=dict)
    runners: list[tuple[Any, Plan, Callable[..., Any]]] = field(default_factory=list)

    def copy(self) -> Blocks:
        """The same settings for another module."""
        return Blocks(self.options, self.every, self.recompute)

    def compile(self, options: dict[str, Any] | None) -> None:
        """Compile from now on, or no longer."""
        self.options = options
        self.compiled.clear()
        self.runners.clear()

    def checkpoint(self, every: int, options: dict[str, Any]) -> None:
        """Recompute from now on."""
        given = {"use_reentrant": False, **options}
        self.every, self.recompute = every, functools.partial(checkpoint, **given)
        self.runners.clear()

    def forget(self, variant: Any) -> None:
        """A variant that is gone."""
        self.regrouped.pop(variant, None)
        self.runners = [known for known in self.runners if known[0] is not variant]

    def runner(self, variant: Any, tree: nn.Module) -> Callable[..., Any]:
        """What runs the graph of a variant in this call: the flat graph where nothing else is asked for."""
        compiled = self.options is not None and not torch.compiler.is_compiling()
        names, recompute = self._recomputed(variant, tree)
        if not (compiled or names):
            return variant.run
        for known, plan, run in self.runners:
            same = known is variant and plan.compiled == compiled and plan.recomputed == names
            # A tracer does not tell two functions apart; it takes the one that was first asked for.
            if same and (plan.recompute is recompute or torch.compiler.is_compiling()):
                return run
        return never_traced(self._add)(variant, Plan(compiled, names, recompute))

    def _recomputed(self, variant: Any, tree: nn.Module) -> tuple[tuple[str, ...], Callable[..., Any] | None]:
        if not (tree.training and torch.is_grad_enabled()) or is_exporting():
            return (), None
        if self.every:
            return tuple(variant.blocks[:: self.every]), self.recompute
        if not is_recomputing(tree):
            return (), None
        found = [(n, f) for n in variant.blocks if (f := host_function(tree, n)) is not None]
        return tuple([n for n, _ in found]), found[0][1] if found else None

    def _add(self, variant: Any, plan: Plan) -> Callable[..., Any]:
        if variant not in self.regrouped:
            graph = variant.capture.graph
            segments = segments_of(graph, variant.blocks)
            self.regrouped[variant] = outline(graph, segments, self.functions)

        def wrap(part: Outlined) -> Callable[..., Any]:
            function = self._compiled(part.function) if plan.compiled else part.function
            if part.segment.block not in plan.recomputed or not part.repeats:
                return function
            assert plan.recompute is not None
            return _recomputing(function, plan.recompute, part.written)

        run = self.regrouped[variant].bind(wrap)
        if plan.compiled:
            run = self._chunking(run)
        self.runners.append((variant, plan, run))
        return run

    def _chunking(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def chunking(*args: Any, **kwargs: Any) -> Any:
            with compiling_chunks(self._compiled_chunk):
                return run(*args, **kwargs)

        return chunking

    def _compiled_chunk(self, function: Callable[..., Any], size: int) -> Callable[..., Any]:
        if (function, size) not in self.chunks:
            # Compiled code is kept per code object, up to a limit: every size has one of its own.
            code = function.__code__.replace(co_name=f"{function.__name__}_{size}")
            own = FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
            self.chunks[function, size] = own
        return self._compiled(self.chunks[function, size])

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if function not in self.compiled:
            self.compiled[function] = torch.compile(function, **(self.options or {}))
        return self.compiled[function]


def _recomputing(function: Callable[..., Any], recompute: Callable[..., Any], written: list[int]) -> Callable[..., Any]:
    """``function`` with its activations recomputed from the same parameters; statistics are written the first time."""

    def run(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return recompute(function, *args)
        before = {i: _tensors(a) for i, a in enumerate(args) if isinstance(a, nn.Module)}
        done = False

        def body(*given: Any) -> Any:
            nonlocal done
            if done:
                again = list(given)
                for i in written:
                    again[i] = given[i].clone()
                for i, tensors in before.items():
                    again[i] = _with_tensors(given[i], tensors)
                return function(*again)
            done = True
            return function(*given)

        return recompute(body, *args)

    return run


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _with_tensors(module: nn.Module, tensors: dict[str, torch.Tensor]) -> Callable[..., Any]:
    """The module as it was called: ``torch.func.functional_call`` may have lent it parameters and be over by now."""
    if all(tensors[n] is t for n, t in _tensors(module).items()):
        return module
    return lambda *args, **kwargs: torch.func.functional_call(module, tensors, args, kwargs)
