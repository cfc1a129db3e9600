"""A method grafted onto a trained Hugging Face model: first the new parameters alone, then everything.

    python -m examples.graft --method denseformer

The model is a small Llama that this file trains and saves first, in the place of one from a hub: ``--model FOLDER``
takes any folder that ``from_pretrained`` reads. Nothing is downloaded.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import resfx

VOCAB, LENGTH = 96, 24
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def batch(step: int, size: int = 16) -> torch.Tensor:
    """Rows that count up in steps of one to three."""
    generator = torch.Generator().manual_seed(step)
    first, stride = (torch.randint(1, high, (size, 1), generator=generator) for high in (VOCAB, 4))
    return (first + stride * torch.arange(LENGTH)) % VOCAB


def loss_of(model: torch.nn.Module, step: int) -> torch.Tensor:
    ids = batch(step)
    return model(input_ids=ids, labels=ids).loss


def train(model: torch.nn.Module, steps: int, groups: list[dict]) -> None:
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    model.train()
    for step in range(steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def held_out(model: torch.nn.Module) -> float:
    return sum(loss_of(model, 10**6 + i).item() for i in range(4)) / 4


def pretrained(folder: Path, steps: int) -> Path:
    """A folder as a hub would hold it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    train(model, steps, [{"params": model.parameters(), "lr": 3e-3}])
    model.save_pretrained(folder)
    return folder


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="denseformer", help="a method's name")
    parser.add_argument("--model", type=Path, help="a folder with a pretrained causal language model")
    parser.add_argument("--steps", type=int, default=60, help="of each of the three trainings")
    parser.add_argument("--out", type=Path, help="where the grafted model goes; by default nowhere that lasts")
    o = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        base = AutoModelForCausalLM.from_pretrained(o.model or pretrained(Path(place) / "base", o.steps))
        losses = {"pretrained": held_out(base)}
        new = resfx.rewrite(base, o.method, kwargs={"input_ids": batch(0), "labels": batch(0)})
        print(new.report)
        losses["grafted"] = held_out(new)  # the same function, bit for bit

        resfx.freeze_original(new)
        print(resfx.trainable(new))
        train(new, o.steps, [{"params": new.new_parameters().values(), "lr": 1e-2}])
        losses["new parameters trained"] = held_out(new)

        new.requires_grad_(True)
        old = [p for n, p in new.named_parameters() if not n.startswith("resfx.")]
        groups = [{"params": old, "lr": 1e-3}, {"params": new.new_parameters().values(), "lr": 1e-2}]
        train(new, o.steps, groups)
        losses["everything trained"] = held_out(new)

        folder = o.out or Path(place) / "grafted"
        new.save_pretrained(folder)  # the model's own files, and the recipe beside them
        losses["saved and loaded"] = held_out(resfx.load(folder))
    for what, loss in losses.items():
        print(f"{what:24} {loss:.4f}")
    return losses


if __name__ == "__main__":
    main()
