"""Libraries that spread a model over processes themselves: accelerate, the Trainer of transformers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..tool import Make, hold_equal, tool
from .distributed import NEAR, ROWS, by_parts, descend, gradients, mean, mine, processes, same_gradients, whole


def launched() -> None:
    """What a launcher would have set."""
    rank, count = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "ACCELERATE_USE_CPU": "true"}  # fmt: skip


def _ddp(make: Make) -> None:
    from accelerate import Accelerator

    launched()
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(make().train())
    same(make, accelerator, model, gradients)


def same(make: Make, accelerator: Any, model: nn.Module, found: Any) -> None:
    loss, expected = by_parts(make().train())
    got = model(input_ids=mine(), labels=mine(), use_cache=False).loss
    accelerator.backward(got)
    hold_equal(loss, mean(got), NEAR, "loss")
    same_gradients(expected, found(model), NEAR, "accelerate")


@tool("accelerate, DDP", needs="accelerate")
def accelerate_ddp(make: Make) -> None:
    processes(2, _ddp, make)


def _fsdp(make: Make, version: int) -> None:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    launched()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version, auto_wrap_policy="transformer_based_wrap", use_orig_params=True,
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"], cpu_ram_efficient_loading=False,
        reshard_after_forward=True if version == 2 else "FULL_SHARD",
    )  # fmt: skip
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model = make().train()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def found(model: nn.Module) -> dict[str, torch.Tensor]:
        if version == 2:
            return gradients(model)
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            return gradients(model)

    same(make, accelerator, model, found)
    accelerator.clip_grad_norm_(model.parameters(), 1e9)
    optimizer.step()
    single = make().train()
    by_parts(single)
    descend(single)
    state = accelerator.get_state_dict(model)
    if dist.get_rank() == 0:
        for name, value in single.named_parameters():
            hold_equal(value, state[name], NEAR, f"{name} after a step")


@tool("accelerate, FSDP version 2", needs="accelerate")
def accelerate_fsdp2(make: Make) -> None:
    processes(2, _fsdp, make, 2)


@tool("accelerate, FSDP version 1", needs="accelerate")
def accelerate_fsdp1(make: Make) -> None:
    processes(2, _fsdp, make, 1)


def _trainer(make: Make, folder: str, fsdp: dict[str, Any]) -> None:
    from transformers import Trainer, TrainingArguments

    launched()
    arguments = TrainingArguments(
        output_dir=folder, use_cpu=True, max_steps=2, per_device_train_batch_size=4, report_to=[], optim="sgd",
        learning_rate=0.1, lr_scheduler_type="constant", disable_tqdm=True, save_strategy="no", logging_strategy="no",
        max_grad_norm=0.0, data_seed=0, **fsdp,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in ROWS]
    trainer = Trainer(model=make().train(), args=arguments, train_dataset=data)
    trainer.train()
    single = make().train()
    for _ in range(2):  # every step sees the whole batch, in some order
        by_parts(single, 1)
        descend(single)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if dist.get_rank() == 0:
        for name, value in single.named_parameters():
            hold_equal(value, whole(state[name]), 1e-5, f"{name} after two steps")


def _of_trainer(make: Make, **fsdp: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        processes(2, _trainer, make, folder, fsdp)


@tool("Trainer, DDP", needs="transformers accelerate")
def trainer_ddp(make: Make) -> None:
    _of_trainer(make)


WRAPPED = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}


@tool("Trainer, fsdp, version 1", needs="transformers accelerate")
def trainer_fsdp1(make: Make) -> None:
    _of_trainer(make, fsdp="full_shard auto_wrap", fsdp_config={**WRAPPED, "version": 1, "use_orig_params": True})


@tool("Trainer, fsdp, version 2", needs="transformers accelerate")
def trainer_fsdp2(make: Make) -> None:
    _of_trainer(make, fsdp="full_shard auto_wrap", fsdp_config={**WRAPPED, "version": 2})


@tool("torchrun of a script with accelerate, two processes", needs="accelerate", seconds=400)
def torchrun(make: Make) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--module",
               "tests.ecosystem.spread.script", make.mode or ""]  # fmt: skip
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]
