"""A residual method of your own in each scope: a frozen config, a module, and nothing to register.

    python -m examples.own_method

Each starts as the model is, bit for bit, and learns from there; ``rewrite`` checks both.
"""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import resfx
from resfx.methods import DepthMethod, Expand, Method, Mixer, Readout, RouteMethod, WideStream


class Weighted(nn.Module):
    """What has one weight, zero at the start; ``reset_parameters`` gives it, also to a model built without memory."""

    def __init__(self, place, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, device=place.device, dtype=place.dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


@dataclass(frozen=True, kw_only=True)
class Scaled(Method):
    """``x + (1 + w) f``: what replaces an add."""

    name, scope = "scaled", "site"

    def build(self, place):
        return ScaledAdd(place, place.width)


class ScaledAdd(Weighted):
    def forward(self, x: Tensor, f: Tensor, c: Tensor | None) -> Tensor:
        return x + f + self.weight * f


@dataclass(frozen=True, kw_only=True)
class Anchored(DepthMethod):
    """``x + w x_0`` before every block: a read of the stream's first state."""

    name = "anchored"

    def sources(self, read, last):
        return None if last or read == 0 else [(0,)]

    def build(self, place):
        return AnchoredRead(place, place.width)


class AnchoredRead(Weighted):
    def forward(self, sources: list[Tensor], x: Tensor) -> Tensor:
        return x + self.weight * sources[0]


@dataclass(frozen=True, kw_only=True)
class Echo(Method):
    """``h_t + w h_{t-1}`` on what the attention reads: a mixer over positions."""

    name, scope, points = "echo", "sequence", ("attention",)

    def build(self, place):
        return EchoMixer(place, place.width)


class EchoMixer(Weighted, Mixer):
    streams = 1  # one tensor is kept between decoding steps: the last position

    def forward(self, h, mask=None, state=None, keep=False):
        before = torch.zeros_like(h[:, :1]) if state is None else state[0]
        out = h + self.weight * torch.cat([before, h[:, :-1]], 1)
        return (out, (h[:, -1:].clone(),)) if keep else out


@dataclass(frozen=True, kw_only=True)
class FirstValues(RouteMethod):
    """``v + w v_0``, by head: a read of the first attention's values, behind the projection."""

    name, points = "first_values", ("v",)

    def sources(self, layer, layers):
        return [0] if layer else None

    def build(self, place):
        return ValueRead(place, place.heads, 1)


class ValueRead(Weighted):
    def forward(self, sources: list[Tensor], v: Tensor) -> Tensor:
        return v + self.weight * sources[0]


@dataclass(frozen=True, kw_only=True)
class Lanes(Method):
    """Two channels; each branch reads their mean and writes to each with weights of its own."""

    name, scope = "lanes", "wide"

    def build_stream(self, places):
        writes = [LaneWrite(p, 2, 1) for p in places]
        reads = [None if p.parallel else LaneRead() for p in places]
        kind = {"device": places[0].device, "dtype": places[0].dtype}
        return WideStream(Expand(2), reads, writes, Readout(2, "learned", kind))


class LaneRead(nn.Module):
    def forward(self, state: Tensor) -> tuple[Tensor, None]:
        return (state[..., 0, :] + state[..., 1, :]) / 2, None


class LaneWrite(Weighted):
    def forward(self, state: Tensor, f: Tensor, x: Tensor, c: Tensor | None, memo: None) -> Tensor:
        return state + (1 + self.weight) * f.unsqueeze(-2)


def main(argv: list[str] | None = None) -> dict[str, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of training, with each method")
    o = parser.parse_args(argv)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    losses = {}
    for method in (Scaled(), Anchored(), Echo(), FirstValues(), Lanes()):
        torch.manual_seed(0)
        model, ids = LlamaForCausalLM(LlamaConfig(**sizes)), torch.randint(64, (4, 12))
        inputs = {"input_ids": ids, "labels": ids}
        new = resfx.rewrite(model, method, kwargs=inputs)
        same = torch.equal(model(**inputs).logits, new(**inputs).logits)
        resfx.freeze_original(new)  # the new parameters alone
        optimizer = torch.optim.AdamW(new.new_parameters().values(), lr=0.05)
        for _ in range(o.steps):
            loss = new(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.setdefault(method.name, (loss.item(), 0.0))
        losses[method.name] = losses[method.name][0], loss.item()
        first, last = losses[method.name]
        print(f"{method.name:12} scope {method.scope:9} starts exactly: {same}  loss {first:.3f} -> {last:.3f}")
    return losses


if __name__ == "__main__":
    main()
