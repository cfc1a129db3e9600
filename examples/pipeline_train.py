"""A rewritten Llama in pipeline stages, one or more a process: trained by 1F1B on generated text.

    torchrun --nproc-per-node 2 examples/pipeline_train.py --method attnres --each 2

Runs on CPUs (gloo) in about a minute, on GPUs (nccl) as it is. Nothing is downloaded.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch.distributed.pipelining import Schedule1F1B, ScheduleInterleaved1F1B
from transformers import LlamaConfig, LlamaForCausalLM

import resfx

ROWS, LENGTH, VOCAB, MICROBATCHES = 8, 32, 96, 4
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def batch(step: int, device: torch.device) -> torch.Tensor:
    """Sentences that count up in steps of one to three, the same in every process."""
    generator = torch.Generator().manual_seed(step)
    first, stride = (torch.randint(1, high, (ROWS, 1), generator=generator) for high in (VOCAB, 4))
    return ((first + stride * torch.arange(LENGTH)) % VOCAB).to(device)


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Of the next tokens."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="attnres")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--each", type=int, default=1, help="stages of every process: more are interleaved")
    options = parser.parse_args()

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)  # the same weights in every process, which then keeps its own stage
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(device).train()
    rows = batch(0, device)[: ROWS // MICROBATCHES]
    new = resfx.rewrite(model, options.method, args=(rows,))
    keeps = count if options.each > 1 and count > 1 else None  # what one stage of a process has, its next need not get
    stages = resfx.split(new, count * options.each, args=(rows,), ranks=keeps)
    if rank == 0:
        print(stages)
    mine = stages.pipeline_stages(device)
    optimizer = torch.optim.AdamW([p for stage in mine for p in stage.submod.parameters()], lr=3e-3)
    if options.each > 1:
        schedule = ScheduleInterleaved1F1B(mine, MICROBATCHES, loss_fn=loss_of)
    else:
        schedule = Schedule1F1B(mine[0], MICROBATCHES, loss_fn=loss_of)
    for step in range(options.steps):
        ids, losses = batch(step, device), []
        given = (ids,) if rank == 0 else ()
        schedule.step(*given, **({"target": ids, "losses": losses} if rank == count - 1 else {}))
        optimizer.step()
        optimizer.zero_grad()
        if losses and (step % 10 == 0 or step == options.steps - 1):
            print(f"step {step}: loss {torch.stack(losses).mean():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
