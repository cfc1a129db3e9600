"""Checkpoints of models spread over processes, and models that are built on the meta device."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

import resfx

from ..tool import IDS, Make, hold_equal, llama, logits, tool
from .distributed import NEAR, mine, processes, whole
from .sharded import shard


def _spread(make: Make, std: float = 0.1) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = make(std).train()
    model = shard(model) if dist.get_world_size() > 1 else model
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(input_ids=mine(), labels=mine(), use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _all_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every parameter and every moment, whole, by name."""
    found = {n: whole(p.detach()).clone() for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found |= {f"{name} {k}": whole(v).clone() for k, v in optimizer.state[parameter].items()}
    return found


def _save(make: Make, folder: str) -> None:
    model, optimizer = _spread(make)
    _train(model, optimizer)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/saved")
    at = _all_of(model, optimizer)
    _train(model, optimizer)
    later = _all_of(model, optimizer)
    if dist.get_rank() == 0:
        torch.save((at, later), f"{folder}/expected.pt")


def _load(make: Make, folder: str) -> None:
    model, optimizer = _spread(make, 0.3)
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/saved")
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    at, later = torch.load(f"{folder}/expected.pt")
    _same_state(at, _all_of(model, optimizer), 0.0, "loaded")
    _train(model, optimizer)
    _same_state(later, _all_of(model, optimizer), 1e-3, "a step later")  # AdamW divides rounding by its root


def _same_state(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], within: float, at: str) -> None:
    assert set(expected) == set(found), sorted(set(expected) ^ set(found))
    for name, value in expected.items():
        hold_equal(value, found[name], within, f"{at}, {name}")


def _between(make: Make, counts: list[tuple[int, int]]) -> None:
    for before, after in counts:
        with tempfile.TemporaryDirectory() as folder:
            processes(before, _save, make, folder)
            processes(after, _load, make, folder)


@tool("checkpoint of model and optimizer, 2 processes to 1, 1 to 2")
def to_one(make: Make) -> None:
    _between(make, [(2, 1), (1, 2)])


@tool("checkpoint of model and optimizer, 2 processes to 4, 4 to 2")
def to_more(make: Make) -> None:
    _between(make, [(2, 4), (4, 2)])


def _full(make: Make, own: bool) -> None:
    source = make(0.2) if own else make.plain()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1)
    state = source.state_dict() if dist.get_rank() == 0 else {}
    model = shard(make())
    before = {n: whole(p.detach()).clone() for n, p in model.named_parameters()}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=own)
    set_model_state_dict(model, state, options=options)
    expected = before | {n: p.detach() for n, p in source.named_parameters()}
    _same_state(expected, {n: whole(p.detach()) for n, p in model.named_parameters()}, 0.0, "loaded")
    back = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        _same_state(expected, {n: back[n] for n in expected}, 0.0, "back")


@tool("set_model_state_dict of all, broadcast from one process")
def full(make: Make) -> None:
    processes(2, _full, make, True)


@tool("set_model_state_dict of the plain model's weights, broadcast")
def full_of_plain(make: Make) -> None:
    processes(2, _full, make, False)


def on_meta(make: Make) -> Any:
    with torch.device("meta"):
        model: Any = llama()
        if make.mode is not None:
            model = resfx.rewrite(model, make.mode, args=(IDS.to("meta"),))
    return model


def _meta(make: Make, whose: str) -> None:
    plain = make.plain()
    model = shard(on_meta(make).train())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    if whose == "host":
        model.init_weights()
    elif whose == "ours":
        resets = [m for m in model.modules() if hasattr(m, "reset_parameters")]
        model.model.rotary_emb.inv_freq.copy_(plain.model.rotary_emb.inv_freq)
        model.model.rotary_emb.original_inv_freq.copy_(plain.model.rotary_emb.inv_freq)
        _load_plain(model, plain)
        for module in resets:
            if make.mode is not None and any(m is module for m in model.resfx.modules()):
                module.reset_parameters()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert bool(whole(tensor).isfinite().all()), f"{name} has no values"
    _load_plain(model, plain)
    model.eval()
    hold_equal(logits(plain, mine()), logits(model, mine()), NEAR, "logits at the start")
    model.reshard()  # of the root, only a backward pass would do it
    state = make(0.2).state_dict() if dist.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)
    hold_equal(logits(make(0.2), mine()), logits(model, mine()), NEAR, "logits after loading")
    model.train()(input_ids=mine(), labels=mine(), use_cache=False).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def _load_plain(model: nn.Module, plain: nn.Module) -> None:
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    state = copy.deepcopy(plain.state_dict()) if dist.get_rank() == 0 else {}
    set_model_state_dict(model, state, options=options)


@tool("meta device, FSDP2, to_empty(), the host's init_weights()")
def meta_by_host(make: Make) -> None:
    processes(2, _meta, make, "host")


@tool("meta device, FSDP2, to_empty(), reset_parameters() of new modules")
def meta_by_module(make: Make) -> None:
    processes(2, _meta, make, "ours")
