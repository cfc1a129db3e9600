"""A model in stages for pipeline parallelism: ``resfx.split``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from resfx._torch import tracing
from resfx.errors import InputError, OptionError, VariantError
from resfx.methods.options import refuse_wrong_arguments
from resfx.passes.capture.calls import bind
from resfx.passes.capture.clone import copy_sharing_parameters
from resfx.passes.capture.inputs import Example, Named, Positional, example_of, outside_inference_mode
from resfx.passes.capture.source import Source, source_of
from resfx.passes.find.detect import find_sites
from resfx.passes.find.graph import hint
from resfx.passes.fold import Shared, fold_in_stages
from resfx.passes.scopes.application import Application
from resfx.passes.scopes.apply import apply_methods
from resfx.runtime.blocks import block_names, outermost
from resfx.runtime.module import Rewritten, rewriting_of

from .stage import Stage

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage


@dataclass(frozen=True)
class Crossing:
    """A tensor that crosses from one stage to the next.

    Attributes:
        name: of the value in the graph.
        shape: its sizes, as numbers or symbols.
        dtype: its type.
        bytes_per_token: per position of the first tensor that crosses; the same goes back as a gradient if
            ``differentiable``.
    """

    name: str
    shape: tuple[str, ...]
    dtype: torch.dtype
    bytes_per_token: float
    differentiable: bool


class Stages(list[Stage]):
    """The stages of a model, in order.

    Attributes:
        starts: the block that each stage but the first begins with.
        borders: what crosses from each stage to the next.
        kept: what each keeps for later stages of its process.
        ranks: how many processes the stages were split for; None where each may have its own.
    """

    def __init__(self, stages: Sequence[Stage], starts: list[str], borders: list[list[Crossing]],
                 kept: list[list[Crossing]], ranks: int | None) -> None:  # fmt: skip
        super().__init__(stages)
        self.starts, self.borders, self.kept, self.ranks = starts, borders, kept, ranks

    def pipeline_stages(
        self, device: torch.device | str, group: dist.ProcessGroup | None = None
    ) -> list[PipelineStage]:
        """Those of this process, for a schedule of ``torch.distributed.pipelining``: stage ``i`` in process ``i % n``.

        Args:
            device: where they run.
            group: the processes of the pipeline; all, by default.

        Raises:
            OptionError: without a process group, or for what is no device; if the stages were split for another
                number of processes, and later by a schedule that places them otherwise (``ScheduleZBVZeroBubble``).
            VariantError: later, by a schedule that splits backward passes (``ScheduleInterleavedZeroBubble``), if the
                stages were split for ``ranks``.
        """
        from .place import place

        return place(self, self.ranks, device, group)

    def __str__(self) -> str:
        lines = [f"{len(self)} stages, {sum(1 for b in self.borders for _ in b)} tensors cross"]
        for number, (start, border) in enumerate(zip(self.starts, self.borders, strict=True), 1):
            forward = sum(c.bytes_per_token for c in border)
            back = sum(c.bytes_per_token for c in border if c.differentiable)
            lines.append(f"  stage {number} from {start}: {len(border)} tensors, {forward:g} bytes per token"
                         f" forward, {back:g} back")  # fmt: skip
            lines += [f"    {c.name} ({', '.join(c.shape)}) {str(c.dtype).removeprefix('torch.')}" for c in border]
        for number, kept in enumerate(self.kept):
            if kept:
                size = sum(c.bytes_per_token for c in kept)
                lines.append(f"  stage {number} keeps {len(kept)} tensors, {size:g} bytes per token, for later stages"
                             " of its process")  # fmt: skip
        return "\n".join(lines)


@tracing()
def split(
    model: Any, stages: int | None = None, args: Positional | None = None, kwargs: Named | None = None, *,
    at: Sequence[str] = (), ranks: int | None = None,
) -> Stages:  # fmt: skip
    """Cut a model, rewritten or not, into consecutive stages, for ``torch.distributed.pipelining.PipelineStage``.

    Each stage is a module that holds the parameters it needs, under their names in the model and shared with it. What
    crosses is what the stages behind read and cannot compute themselves: the stream, its channels, the states that a
    method reads over depth. Masks and position tables are made again in each stage. No cache is kept:
    ``use_cache=False`` is passed where ``forward`` takes it.

    Args:
        model: an ``nn.Module``, or what :func:`resfx.rewrite` returned. It is not changed.
        stages: how many, of equally many blocks as far as they go.
        args, kwargs: one micro-batch, as ``forward`` takes it. Batch and length may vary afterwards.
        at: instead of ``stages``, the names of the blocks that stages begin with, without the first:
            ``at=["model.layers.4"]`` makes two.
        ranks: how many processes take the stages in turns, stage ``i`` in process ``i % ranks``, as interleaved
            schedules have it. A process then keeps what one of its stages received or made for its later ones, and only
            what it lacks crosses (cross-stage caching, arXiv 2603.15031); gradients go back the same way. Such stages
            run as :meth:`Stages.pipeline_stages` makes them.

    Raises:
        OptionError: for a number of stages that the model has not blocks enough for, or that are not shared out evenly.
        InputError: without inputs, or with such as ``forward`` does not take.
        CaptureError: if the model cannot be captured.
        VariantError: if a stage cannot begin where ``at`` says.
    """
    refuse_wrong_arguments(split, stages=stages, at=at, ranks=ranks)
    if at and (len(set(at)) != len(at) or stages not in (None, len(at) + 1)):
        raise OptionError(f"cannot split {type(model).__name__} at {', '.join(at)}",
                          "a block twice" if len(set(at)) != len(at) else f"stages={stages} beside it",
                          "at= or stages=, each block once")  # fmt: skip
    rewritten = isinstance(model, Rewritten)
    source: Source = model._resfx.source if rewritten else source_of(model, args, kwargs)
    applications: list[Application] = model._resfx.applications if rewritten else []
    example = example_of(args, kwargs) or source.example
    if example is None or source.shared:
        raise InputError(f"cannot split {type(model).__name__}", "no inputs to trace it with",
                         "args= and kwargs= as forward takes them")  # fmt: skip
    presets = _without_cache(source, example)
    example = example[0], {**example[1], **presets}
    with outside_inference_mode():
        tree = copy_sharing_parameters(model if rewritten else source.model)
        source.try_out(tree, *example)
        capture = source.capture(tree, source.call(*example))
    names = block_names(model) if rewritten else _blocks(capture.graph, tree)
    starts = list(at) or _even(stages, names, type(model).__name__)
    if ranks is not None and (ranks < 2 or (len(starts) + 1) % ranks):
        raise OptionError(f"cannot split {type(model).__name__} for {ranks} processes", f"{len(starts) + 1} stages",
                          "ranks= from 2, of which the number of stages is a multiple")  # fmt: skip
    apply_methods(capture.graph, tree, find_sites(capture.graph, tree), applications)
    shared = model._resfx.shared if rewritten else Shared()
    folded, parts = fold_in_stages(capture, tree, source, shared, starts, ranks)
    if rewritten:
        rewriting_of(tree).hand_out(folded, tree)
    found = Stages(
        [Stage(tree, i, part, capture, presets) for i, part in enumerate(parts)], starts,
        [_crossings(part.gives, part.names) for part in parts[:-1]],
        [_crossings(part.keeps, [node.name for node in part.keeps]) for part in parts], ranks,
    )  # fmt: skip
    _warn_of_shared(found)
    return found


def _without_cache(source: Source, example: Example) -> dict[str, Any]:
    """What is passed beside the example, so that no cache is kept."""
    args, kwargs = example
    given = bind(source.signature, args, kwargs)
    return {"use_cache": False} if "use_cache" in source.signature.parameters.keys() - given.keys() else {}


def _blocks(graph: fx.Graph, tree: nn.Module) -> list[str]:
    sites, _, _ = find_sites(graph, tree)
    return outermost(site.block for site in sites)


def _even(stages: int | None, names: list[str], model: str) -> list[str]:
    """The blocks that begin the stages behind the first."""
    if type(stages) is not int or not 1 <= stages <= max(len(names), 1):
        raise OptionError(f"cannot split {model} into {stages!r} stages", f"it has {len(names)} blocks",
                          "stages= from 1 to as many as there are blocks, or at= names of blocks")  # fmt: skip
    return [names[i * len(names) // stages] for i in range(1, stages)]


def _crossings(nodes: Sequence[fx.Node], names: Sequence[str]) -> list[Crossing]:
    found = []
    for node, name in zip(nodes, names, strict=True):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise VariantError("cannot cut the model into stages", f"{name}, which is no tensor, would cross",
                               "at= another block")  # fmt: skip
        sizes = [hint(size) or 1 for size in value.shape]
        tokens = math.prod(sizes[:2])
        found.append(Crossing(name, tuple(str(s) for s in value.shape), value.dtype,
                              math.prod(sizes) * value.element_size() / tokens, value.is_floating_point()))  # fmt: skip
    return found


def _warn_of_shared(stages: Stages) -> None:
    """Name the parameters that several stages hold: across processes each has a gradient of its own."""
    where: dict[int, list[tuple[int, str]]] = {}
    for stage in stages:
        for name, parameter in stage.named_parameters():
            where.setdefault(id(parameter), []).append((stage.number, name))
    for held in where.values():
        if len({number for number, _ in held}) > 1:
            names = " and ".join(f"{name} of stage {number}" for number, name in held)
            said = f"resfx.split: {names} are one parameter; across processes, add up its gradients before a step"
            warnings.warn(said, stacklevel=3)
