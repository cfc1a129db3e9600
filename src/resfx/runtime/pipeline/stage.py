"""One stage of a model: the modules that it calls, under their names, and the code that calls them."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import nn

from resfx._torch import held_modules, is_compiling
from resfx.errors import VariantError
from resfx.passes.capture.clone import class_before
from resfx.passes.capture.guards import shape_guard
from resfx.passes.capture.trace import Capture
from resfx.passes.fold import StageCode
from resfx.passes.fold.guard import Guard, autocast_state
from resfx.runtime.units import binder, levels_of, look_below

from .store import Store


class Holder(nn.Module):
    """A place in the tree of a stage: what the model has there and the stage needs, under its own name."""

    def __getitem__(self, index: int | str) -> nn.Module:
        return self.get_submodule(str(index))


class Stage(Holder):
    """Consecutive blocks of a model as a module.

    ``forward`` takes what the stage before returns, or the model's own arguments in the first stage, and returns what
    the stage behind takes: one tensor or a tuple; the last one returns the tensors of the model's result, in order. A
    later stage takes by name those of the model's own arguments that it reads (``inputs``). Parameters and buffers have
    the names that they have in the model.

    Of stages that were split for ``ranks``, an earlier one keeps values for later ones of its process, in a ``store``
    that they share and that :meth:`.Stages.pipeline_stages` gives them.

    Attributes:
        number: 0, 1, 2, ...
        inputs: names of the model's own tensor arguments that it reads.
        keeps, recalls: names of the values that it keeps, and of those that it reads of others that kept them.
        store: where.
        code: the text of its forward.
    """

    def __init__(
        self, tree: nn.Module, number: int, stage: StageCode, capture: Capture, presets: dict[str, Any]
    ) -> None:
        super().__init__()
        self.number, self.inputs, self.code = number, list(stage.inputs), stage.code.source
        for path in sorted(stage.modules, key=lambda p: p.count(".")):
            _place(self, path, tree.get_submodule(path))
        bank = tree.get_submodule("resfx") if hasattr(tree, "resfx") else nn.Module()
        for path in stage.modules:
            for key, level in levels_of(bank, path).items():
                if key:
                    _place(self, f"resfx.{key}.{path}", level)
        for path in stage.new:
            _place(self, f"resfx.{path}", bank.get_submodule(path))
        for path in stage.tensors:  # after the modules, which may hold them
            _place_tensor(self, path, tree)
        self._levels: dict[str, nn.Module] = levels_of(getattr(self, "resfx", nn.Module()), "")
        self._known = frozenset(signature(class_before(tree).forward).parameters)
        self._run, self._sends = stage.code, len(stage.gives)
        self.keeps, self.recalls = [n.name for n in stage.keeps], [n.name for n in stage.recalls]
        self._drops = [n.name for n in stage.drops]
        self.store: Store | None = None
        values = [n.meta["val"] for n in (*stage.takes, *stage.inputs.values())]
        self._guard = Guard(
            arguments=stage.fixed, objects={}, free=frozenset(), used=(), kinds=(),
            shapes=lambda tensors: True, reads=(), held=(), lists=(), shared=(), told=(), autocast=autocast_state(),
            grad=capture.grad, mode=None, varying=set(),
        )  # fmt: skip
        self._kinds = [(v.dtype, v.device) for v in values]
        self._fits = shape_guard(values, capture.known)
        self._presets = {} if number else presets
        self._bind = None if number else binder(class_before(tree))
        self._mode = tree.training if any(name == "training" for _, name in capture.calls[0].reads) else None
        self.train(tree.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stage's part of the model.

        Raises:
            VariantError: for tensors of another type, device or fixed size than the stage was made for, or where the
                model's own code between the blocks was made for another training mode or autocast.
        """
        kwargs = {**self._presets, **kwargs}
        if not is_compiling():
            self._refuse(args, kwargs)
        if self.number:
            args = _Received.apply(*args)
            kwargs = {name: value for name, value in kwargs.items() if name in self.inputs or name not in self._known}
        if self.recalls and self.store is not None:
            args = (*args, *self.store.recall(self.recalls, self._drops))
        new = [look_below(self._levels, way) for way in self._run.new]
        given = self._run.function(self, new, None, *args, **kwargs)
        if not self._sends:
            return given
        values = given if isinstance(given, tuple) else (given,)
        sent, kept = values[: self._sends], values[self._sends :]
        if kept and self.store is not None:
            sent = self.store.keep(self.keeps, kept, sent)
        sent = tuple([x.contiguous() for x in sent])
        return sent if len(sent) > 1 else sent[0]

    def _refuse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise for a call that the code was not made for."""
        asked = f"cannot run stage {self.number} on this call"
        remedy = "resfx.split the model again, with args= of such a call"
        if self.store is None and (self.keeps or self.recalls):
            raise VariantError(asked, "it was split for ranks, and stages of a process share what they keep",
                               "stages.pipeline_stages(device) makes those of this process")  # fmt: skip
        named = kwargs if self._bind is None else self._bind(self, *args, **kwargs)
        if unlike := self._guard.differs(self, named):
            raise VariantError(asked, f"the model was split with another {unlike}", remedy)
        if self._mode is not None and self.training != self._mode:
            mode = "training" if self._mode else "evaluation"
            raise VariantError(asked, f"the code between its blocks was made for {mode}", remedy)
        given = [*(args if self._bind is None else ()), *(named.get(name) for name in self.inputs)]
        if len(given) != len(self._kinds) or not all(isinstance(g, torch.Tensor) for g in given):
            crossing = len(self._kinds) - len(self.inputs)
            found = f"it takes {crossing} tensors" + (f", and by name {', '.join(self.inputs)}" if self.inputs else "")
            raise VariantError(asked, found, "what the stage before returned, and these arguments of the model by name")
        if [(g.dtype, g.device) for g in given] != self._kinds:
            raise VariantError(asked, "a tensor has another type or device", remedy)
        if not self._fits(given):
            raise VariantError(asked, f"sizes {', '.join(str(tuple(g.shape)) for g in given)}", remedy)


class _Received(torch.autograd.Function):
    """What came over the wire, unchanged; its gradients are laid out as what is sent has to be."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tensors

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return tuple(None if g is None else g.contiguous() for g in gradients)


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    holder, name = _holder(root, path)
    if holder is not None and name not in held_modules(holder):
        holder.add_module(name, module)


def _place_tensor(root: nn.Module, path: str, tree: nn.Module) -> None:
    holder, name = _holder(root, path)
    if holder is None or hasattr(holder, name):
        return
    owner, _, _ = path.rpartition(".")
    there = tree.get_submodule(owner)
    tensor = getattr(there, name)
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(name, tensor)
    else:
        holder.register_buffer(name, tensor, persistent=name in there.state_dict(keep_vars=True))


def _holder(root: nn.Module, path: str) -> tuple[nn.Module | None, str]:
    """Where a path's last name goes; nowhere where a module of the model that is placed already has it."""
    *way, name = path.split(".")
    for step in way:
        if step not in held_modules(root):
            root.add_module(step, Holder())
        root = root.get_submodule(step)
        if not isinstance(root, Holder):
            return None, name
    return root, name
