"""A rewritten Llama sharded with FSDP2: trained on generated text, saved by shards, loaded and trained on.

    torchrun --nproc-per-node 2 examples/fsdp2_train.py --method mhc --checkpoint /tmp/checkpoint

Runs on CPUs (gloo) in about a minute, on GPUs (nccl) as it is. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

import resfx

BATCH, LENGTH, VOCAB = 4, 32, 96
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def build(method: str, device: torch.device) -> tuple[LlamaForCausalLM, torch.optim.Optimizer]:
    """The model with one of our methods, sharded layer by layer, and its optimizer."""
    torch.manual_seed(0)  # the same weights in every process
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(device)
    ids = torch.randint(VOCAB, (2, LENGTH), device=device)
    model = resfx.rewrite(model, method, kwargs={"input_ids": ids, "labels": ids, "use_cache": False})
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    new = resfx.of(model).new_parameters()
    groups = [
        {"params": [p for n, p in model.named_parameters() if n not in new], "lr": 3e-3},
        {"params": list(new.values()), "lr": 1e-2},
    ]
    return model.train(), torch.optim.AdamW(groups, weight_decay=0.0)


def batch(step: int, device: torch.device) -> torch.Tensor:
    """Sentences that count up in steps of one to three; every process draws its own."""
    generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    first, stride = (torch.randint(1, high, (BATCH, 1), generator=generator) for high in (VOCAB, 4))
    return ((first + stride * torch.arange(LENGTH)) % VOCAB).to(device)


def train(model: Any, optimizer: torch.optim.Optimizer, steps: range, device: torch.device) -> float:
    """A few steps; returns the last loss, the mean over processes."""
    for step in steps:
        ids = batch(step, device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        shown = loss.detach().clone()
        dist.all_reduce(shown)
        shown /= dist.get_world_size()
        if dist.get_rank() == 0:
            print(f"step {step:2d}  loss {shown.item():.4f}", flush=True)
    return shown.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ddl", help="a method's name: ddl, attnres, mhc, short_swa, ...")
    parser.add_argument("--steps", type=int, default=10, help="before the checkpoint; half as many after it")
    parser.add_argument("--checkpoint", help="a folder that every process sees; by default a temporary one")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", dist.get_node_local_rank()) if cuda else torch.device("cpu")
    before, after = range(options.steps), range(options.steps, options.steps + max(options.steps // 2, 1))
    with tempfile.TemporaryDirectory() as folder:
        place = [options.checkpoint or folder]
        dist.broadcast_object_list(place)

        model, optimizer = build(options.method, device)
        train(model, optimizer, before, device)
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=place[0])
        went_on = train(model, optimizer, after, device)

        model, optimizer = build(options.method, device)
        weights, state = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=place[0])
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
        again = train(model, optimizer, after, device)
        if dist.get_rank() == 0:
            print(f"after loading, the loss is {again:.4f}; without a break it was {went_on:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
