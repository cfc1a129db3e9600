"""Layers split over processes (``parallelize_module``, transformers' own plan), alone and below FSDP2."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import resfx

from ..tool import IDS, Make, hold_equal, logits, stir, tool
from .distributed import ROWS, by_parts, descend_both, gradients, mine, processes, same_gradients, whole

CLOSE = 1e-5
"""What may differ, as a part of the largest value in a tensor: the sums in every layer are in another order."""


def plan() -> dict[str, ParallelStyle]:
    into = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    styles: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in into}
    return styles | {name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}


def split(model: Any, mesh: DeviceMesh) -> Any:
    for layer in model.model.layers:
        parallelize_module(layer, mesh, plan())
    return model


def same(single: nn.Module, model: nn.Module, rows: torch.Tensor, parts: int = 1, **given: Any) -> None:
    """Two steps of plain descent, on the same rows in every process or on parts of the batch."""
    for i in range(2):
        loss, expected = by_parts(single, parts)
        model.zero_grad()
        got = model(input_ids=rows, labels=rows, use_cache=False, **given).loss
        got.backward()
        if parts == 1:
            hold_equal(loss, whole(got), CLOSE, f"loss of step {i}")
        same_gradients(expected, gradients(model), CLOSE, f"step {i}")
        descend_both(single, model, CLOSE)


def _split(make: Make) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    same(make().train(), split(make().train(), mesh), ROWS)


@tool("parallelize_module, columns and rows")
def columns_and_rows(make: Make) -> None:
    processes(2, _split, make)


def _new_call(make: Make) -> None:
    model = split(make().train(), init_device_mesh("cpu", (2,)))
    rows = ROWS[:1]  # a size of one has code of its own
    model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
    single = make().train()
    single(input_ids=rows, labels=rows, use_cache=False).loss.backward()
    same_gradients(gradients(single), gradients(model), CLOSE, "one row")
    hold_equal(logits(make().eval(), IDS[:, :1]), logits(model.eval(), IDS[:, :1]), CLOSE, "one token")
    tokens = model.generate(IDS, max_new_tokens=4, do_sample=False)
    hold_equal(make().generate(IDS, max_new_tokens=4, do_sample=False), tokens, 0.0, "tokens")


@tool("parallelize_module, then calls not seen before, generate()", seconds=400)
def new_call(make: Make) -> None:
    processes(2, _new_call, make)


def _split_first(make: Make) -> None:
    model = split(make.plain(), init_device_mesh("cpu", (2,)))
    if make.mode is not None:
        model = stir(resfx.rewrite(model, make.mode, args=(IDS,)), 0.1)
    same(make().train(), model.train(), ROWS)


@tool("parallelize_module before the rewrite")
def split_first(make: Make) -> None:
    processes(2, _split_first, make)


def _both(make: Make) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    model = split(make().train(), mesh["model"])
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    same(make().train(), model, mine(mesh["data"].get_local_rank(), 2), parts=2)


@tool("parallelize_module below FSDP2, 2x2")
def below_fsdp2(make: Make) -> None:
    processes(4, _both, make)


def _sequence(make: Make) -> None:
    mesh, model = init_device_mesh("cpu", (2,)), make().train()
    rows = ROWS[:, :8]
    to_all = PrepareModuleInput(
        input_kwarg_layouts={"hidden_states": Shard(1)}, desired_input_kwarg_layouts={"hidden_states": Replicate()}
    )
    to_mlp = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    for layer in model.model.layers:
        parts = plan() | {n: RowwiseParallel(output_layouts=Shard(1)) for n in ("self_attn.o_proj", "mlp.down_proj")}
        parts |= {"input_layernorm": SequenceParallel(), "post_attention_layernorm": SequenceParallel()}
        parallelize_module(layer, mesh, parts | {"self_attn": to_all, "mlp": to_mlp})
    ends: dict[str, ParallelStyle] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "model.norm": SequenceParallel(),
        "lm_head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, ends)
    places = torch.arange(8).expand(len(rows), -1)
    found = model(input_ids=rows, position_ids=places, use_cache=False).logits
    expected = make().train()(input_ids=rows, position_ids=places, use_cache=False).logits
    hold_equal(expected, whole(found), CLOSE, "logits")


@tool("SequenceParallel norms")
def sequence(make: Make) -> None:
    processes(2, _sequence, make)


def _plan_of_host(make: Make, folder: str) -> None:
    model = type(make.plain()).from_pretrained(folder, tp_plan="auto")
    if make.mode is not None:
        model = stir(resfx.rewrite(model.eval(), make.mode, args=(IDS,)), 0.1)
    single = make().eval()
    hold_equal(logits(single), logits(model.eval()), CLOSE, "logits")
    loss, _ = by_parts(single.train(), 1)
    got = model.train()(input_ids=ROWS, labels=ROWS, use_cache=False).loss
    got.backward()
    hold_equal(loss, got, CLOSE, "loss")
    expected, found = gradients(single), gradients(model)
    names = [n for n in expected if found[n].shape == expected[n].shape]
    same_gradients({n: expected[n] for n in names}, {n: found[n] for n in names}, CLOSE, "of whole tensors")
    assert any(n.startswith("resfx.") for n in names) or make.mode is None
    tokens = model.eval().generate(IDS, max_new_tokens=4, do_sample=False)
    hold_equal(make().generate(IDS, max_new_tokens=4, do_sample=False), tokens, 0.0, "tokens")


@tool("from_pretrained(tp_plan='auto'), then the rewrite, generate()", seconds=400)
def plan_of_host(make: Make) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make.plain().save_pretrained(folder)
        processes(2, _plan_of_host, make, folder)
