"""Parameters sharded over processes: FSDP2 (``fully_shard``) and FSDP1."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from ..tool import Make, hold_equal, logits, tool
from .distributed import (
    NEAR,
    by_parts,
    descend,
    gradients,
    mean,
    mine,
    processes,
    same_gradients,
    same_training,
    whole,
)  # fmt: skip

HALF = 2**-6
"""What gradients that meet in bfloat16 may differ by when they meet in another order."""


def shard(model: Any, layers: bool = True, **options: Any) -> Any:
    """Every layer by itself, then the rest; or all in one."""
    for layer in model.model.layers if layers else ():
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def _fsdp2(make: Make, options: dict[str, Any]) -> None:
    same_training(make, shard(make().train(), **options))


@tool("FSDP2 by layer and root, two and four processes")
def by_layer(make: Make) -> None:
    for count in (2, 4):
        processes(count, _fsdp2, make, {})


@tool("FSDP2 of the root only")
def root_only(make: Make) -> None:
    processes(2, _fsdp2, make, {"layers": False})


@tool("FSDP2, reshard_after_forward False and True everywhere")
def resharding(make: Make) -> None:
    for reshard in (False, True):
        processes(2, _fsdp2, make, {"reshard_after_forward": reshard})
        processes(2, _fsdp2, make, {"reshard_after_forward": reshard, "layers": False})


@tool("FSDP2, CPUOffloadPolicy")
def offloaded(make: Make) -> None:
    processes(2, _fsdp2, make, {"offload_policy": CPUOffloadPolicy(pin_memory=False)})


def _hybrid(make: Make) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    same_training(make, shard(make().train(), mesh=mesh))


@tool("FSDP2, HSDP on a 2x2 mesh")
def hybrid(make: Make) -> None:
    processes(4, _hybrid, make)


def halved(make: Make) -> nn.Module:
    """The model with bfloat16 parameters: what a process computes with under mixed precision."""
    model = make().train()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def _mixed(make: Make, layers: bool) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard(make().train(), layers, mp_policy=policy)
    _halved(make, model)


def _halved(make: Make, model: nn.Module) -> None:
    loss, expected = by_parts(halved(make))
    got = model(input_ids=mine(), labels=mine(), use_cache=False).loss
    got.backward()
    hold_equal(loss, mean(got.float()), NEAR, "loss")
    same_gradients(expected, gradients(model), HALF, "bfloat16")


@tool("FSDP2, MixedPrecisionPolicy(bfloat16)")
def mixed(make: Make) -> None:
    processes(2, _mixed, make, True)
    processes(2, _mixed, make, False)


def _accumulated(make: Make) -> None:
    model = shard(make().train())
    _, expected = by_parts(make().train(), 4)
    first, second = mine().chunk(2)
    model.set_requires_gradient_sync(False)
    (model(input_ids=first, labels=first, use_cache=False).loss / 2).backward()
    model.set_requires_gradient_sync(True)
    (model(input_ids=second, labels=second, use_cache=False).loss / 2).backward()
    same_gradients(expected, gradients(model), NEAR, "accumulated")


@tool("FSDP2, gradients accumulated with set_requires_gradient_sync")
def accumulated(make: Make) -> None:
    processes(2, _accumulated, make)


def _recomputed(make: Make, whose: str) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = make().train()
    if whose == "wrapper":
        for i, layer in enumerate(model.model.layers):
            model.model.layers[i] = checkpoint_wrapper(layer)
    elif whose == "host":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        import resfx

        resfx.checkpoint_blocks(model)
    same_training(make, shard(model))


@tool("FSDP2 with checkpoint_wrapper around layers")
def recomputed(make: Make) -> None:
    processes(2, _recomputed, make, "wrapper")


@tool("FSDP2 with gradient_checkpointing_enable()")
def recomputed_by_host(make: Make) -> None:
    processes(2, _recomputed, make, "host")


@tool("FSDP2 with resfx.checkpoint_blocks")
def recomputed_by_block(make: Make) -> str | None:
    if make.mode is None:
        return "the plain model has no blocks of ours"
    processes(2, _recomputed, make, "ours")
    return None


def _compiled(make: Make, by_layer: bool) -> None:
    torch.compiler.reset()
    model = make().train()
    for layer in model.model.layers if by_layer else ():
        layer.compile(backend="aot_eager")
    model = shard(model)
    if not by_layer:
        model.compile(backend="aot_eager")
    same_training(make, model)


@tool("FSDP2 with every layer compiled (aot_eager)", seconds=400)
def compiled(make: Make) -> None:
    processes(2, _compiled, make, True)


@tool("FSDP2, the whole compiled (aot_eager)", seconds=400)
def compiled_whole(make: Make) -> None:
    processes(2, _compiled, make, False)


def _used(make: Make) -> None:
    model = shard(make().eval())
    hold_equal(logits(make(), mine()), logits(model, mine()), NEAR, "logits")
    tokens = model.generate(mine(), max_new_tokens=4, do_sample=False)
    hold_equal(make().generate(mine(), max_new_tokens=4, do_sample=False), tokens, 0.0, "tokens")
    same_training(make, model.train())
    hold_equal(_norm(make), whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)), NEAR, "norm of gradients")


def _norm(make: Make) -> torch.Tensor:
    single = make().train()
    for _ in range(2):
        by_parts(single)
        norm = torch.nn.utils.clip_grad_norm_(single.parameters(), 1e9)
        descend(single)
    return norm


@tool("FSDP2: eval, generate(), then training; clip_grad_norm_")
def used(make: Make) -> None:
    processes(2, _used, make)


def _uneven(make: Make) -> None:
    model = shard(make().train())
    for size in (9, 9) if dist.get_rank() else (9, 5):  # one process meets a call it knows, the other a new one
        rows = mine()[:, :size] if size == 9 else mine()[:1, :size]
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
    hold_equal(torch.ones(1), torch.ones(1))


@tool("FSDP2, calls that are new in one process only")
def uneven(make: Make) -> None:
    processes(2, _uneven, make)


def flat(model: Any, **options: Any) -> nn.Module:
    """FSDP1 as accelerate and the Trainer set it up."""
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={type(model.model.layers[0])})
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"), **options
    )


def _fsdp1(make: Make, strategy: ShardingStrategy, mixed: bool) -> None:
    if mixed:
        types = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model = flat(make().train(), mixed_precision=types)
    else:
        model = flat(make().train(), sharding_strategy=strategy)
    loss, expected = by_parts(halved(make) if mixed else make().train())
    got = model(input_ids=mine(), labels=mine(), use_cache=False).loss
    got.backward()
    hold_equal(loss, mean(got.float()), NEAR, "loss")
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        same_gradients(expected, gradients(model), HALF if mixed else NEAR, "flat")


@tool("FSDP1, use_orig_params, by layer")
def fsdp1(make: Make) -> None:
    for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
        processes(2, _fsdp1, make, strategy, False)


@tool("FSDP1, mixed precision")
def fsdp1_mixed(make: Make) -> None:
    processes(2, _fsdp1, make, ShardingStrategy.FULL_SHARD, True)
