"""A small GPT in plain PyTorch, trained from scratch on bytes, with a residual method that its code knows nothing of.

    python -m examples.nanogpt --method ddl              # and --method none for the plain model
    python -m examples.nanogpt --method mhc --layers 6 --steps 600

The text is the reference manual that Python carries for ``help()``; nothing is downloaded.
"""

import argparse
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F

import resfx


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attend(self, h: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def batch(text: torch.Tensor, size: int, length: int) -> torch.Tensor:
    starts = torch.randint(len(text) - length - 1, (size,)).tolist()
    return torch.stack([text[i : i + length + 1] for i in starts])


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ddl", help="a method's name, or none")
    for name, usual in (("width", 128), ("layers", 4), ("heads", 4), ("length", 128), ("batch", 16), ("steps", 300)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate")
    o = parser.parse_args(argv)
    torch.manual_seed(0)
    text = torch.tensor(list("\n".join(topics[k] for k in sorted(topics)).encode()))
    train, held = text[: -len(text) // 10], text[-len(text) // 10 :]
    model = GPT(o.width, o.layers, o.heads, o.length)
    if o.method != "none":
        # From scratch: the paper's initialisation, not the start that keeps what a trained model computes.
        model = resfx.rewrite(model, o.method, args=(batch(train, 2, o.length - 1),), start="published")
        print(model.report)
    count = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=o.rate, total_steps=o.steps)
    for step in range(o.steps):
        ids = batch(train, o.batch, o.length)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(o.steps // 10, 1) == 0:
            print(f"step {step:4d}  loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        torch.manual_seed(1)
        ids = batch(held, 64, o.length)
        loss = F.cross_entropy(model.eval()(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()
    print(f"{o.method}: {count:,} parameters, loss on held-out text {loss:.3f}")
    return loss


if __name__ == "__main__":
    main()
