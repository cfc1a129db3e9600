"""A vision transformer on images that are made on the fly, with and without a residual method.

    python -m examples.vit --method attnres

Each image is noise with one shape in it, a square, a disc, a cross or a ring, somewhere and in some colour; the model
says which. Nothing is downloaded.
"""

import argparse
import copy

import torch
from transformers import ViTConfig, ViTForImageClassification

import resfx

SIZE, SHAPES = 32, ("square", "disc", "cross", "ring")


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels ``(count, 3, 32, 32)`` about zero, and which shape each holds."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(len(SHAPES), (count,), generator=generator)
    y, x = (8 + torch.rand(2, count, 1, 1, generator=generator) * (SIZE - 16)).unbind()
    size = 4 + 3 * torch.rand(count, 1, 1, generator=generator)
    across, down = (torch.arange(SIZE) - x).abs().expand(-1, SIZE, -1), (torch.arange(SIZE)[:, None] - y).abs()
    down = down.expand(-1, -1, SIZE)
    far, most, least = (across**2 + down**2).sqrt(), torch.maximum(across, down), torch.minimum(across, down)
    masks = torch.stack([most < size, far < size, (most < size) & (least < 1.5), (far < size) & (far > size - 2)])
    inside = masks[kind, torch.arange(count)][:, None].float()
    colour = torch.rand(count, 3, 1, 1, generator=generator) + 0.5
    return inside * colour + 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator), kind


def train(model: torch.nn.Module, steps: int, size: int) -> float:
    """Returns the share of unseen images that the model names rightly."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(steps):
        pixels, kind = images(size, step)
        loss = model.train()(pixel_values=pixels, labels=kind).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % max(steps // 5, 1) == 0:
            print(f"  step {step:4d}  loss {loss.item():.3f}", flush=True)
    pixels, kind = images(256, 10**6)
    with torch.no_grad():
        return (model.eval()(pixel_values=pixels).logits.argmax(-1) == kind).float().mean().item()


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="attnres", help="a method's name")
    for name, usual in (("width", 64), ("layers", 4), ("batch", 64), ("steps", 150)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    o = parser.parse_args(argv)
    torch.manual_seed(0)
    config = ViTConfig(image_size=SIZE, patch_size=4, hidden_size=o.width, num_hidden_layers=o.layers, num_labels=4,
                       num_attention_heads=4, intermediate_size=4 * o.width)  # fmt: skip
    plain = ViTForImageClassification(config)
    pixels, kind = images(2, 0)
    # A rewritten model shares the weights of the one it was made of: each trains a copy of its own.
    start = copy.deepcopy(plain)
    new = resfx.rewrite(start, o.method, kwargs={"pixel_values": pixels, "labels": kind}, start="published")
    print(new.report)
    right = {}
    for name, model in (("plain", plain), (o.method, new)):
        print(name)
        right[name] = train(model, o.steps, o.batch)
    for name, share in right.items():
        print(f"{name:12} {100 * share:.1f} % of 256 unseen images right")
    return right


if __name__ == "__main__":
    main()
