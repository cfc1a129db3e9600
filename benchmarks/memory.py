"""What methods keep for the backward pass: ``python -m benchmarks.memory``.

Bytes per token and residual add, in a block within the stream, that the forward pass of a training step keeps beyond
the plain model's: eager, compiled as one graph (what the compiled forward hands to its backward), and with every block
run again in the backward pass (``torch.utils.checkpoint``). Counted where autograd asks for it
(``saved_tensors_hooks``): each storage once, parameters left out. ``formula`` is what the method says
(:attr:`resfx.methods.base.Method.saved`), in numbers; ``predicted`` is that in bytes.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import resfx
from resfx.methods.base import Method, method_of, methods
from resfx.methods.depth.base import Read

from .common import start, write
from .models import Block, Decoder

WAYS = ("eager", "compiled", "recomputed")
VARIANTS: dict[str, Method] = {
    "ddl, d_v=4": resfx.DDL(value_channels=4), "attnres, blocks of 8": resfx.AttnRes(block=8),
    "short_swa, w=16, d_a=d/8": resfx.ShortSWA(window=16, heads=2, head_dim=4),
}  # fmt: skip
WIDTH, LENGTH, DEPTH, HEADS = 256, 1152, 3, 4
"""More elements in two sources than lie in a cache together: larger lists are never stacked. Nine windows long."""


class Apart(Block):
    """Queries, keys and values with projections of their own: what routes act on."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        del self.qkv
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))

    def project(self, x: torch.Tensor) -> Iterable[torch.Tensor]:
        return (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))


def kept_bytes(model: nn.Module, call: Callable[[], torch.Tensor]) -> int:
    """Bytes of all storages that the graph of a call holds, but for the model's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    held = []  # what is freed could lend its address to the next

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        held.append(t)
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = call()
    del loss
    return sum(found.values())


def built(method: Method | None, depth: int, width: int, scope: str) -> Any:
    """A decoder in training mode that methods of a scope find their places in, rewritten where there is one."""
    torch.manual_seed(0)
    model = Decoder(depth, width, HEADS).train()
    if scope == "route":
        model.blocks = nn.ModuleList(Apart(width, HEADS) for _ in range(depth))
    if method is None:
        return model
    return resfx.rewrite(model, method, args=(torch.randint(0, 500, (1, 32)),), check=False)


def per_token(model: Any, way: str, lengths: tuple[int, ...]) -> float:
    """Bytes per token; of two lengths the slope, which leaves out what does not grow with tokens."""
    run = model
    if way == "compiled":
        torch._dynamo.reset()
        run = torch.compile(model, backend="aot_eager_decomp_partition", dynamic=False)
    elif way == "recomputed":
        for block in model.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    tokens = [torch.randint(0, 500, (1, length)) for length in lengths]
    sizes = [kept_bytes(model, functools.partial(run, t)) for t in tokens]
    return (sizes[-1] - sizes[0]) / (lengths[-1] - lengths[0]) if len(sizes) > 1 else sizes[0] / lengths[0]


def measured(method: Method, width: int, way: str, lengths: tuple[int, ...], depth: int) -> float:
    """Bytes per token and add of the last of ``depth`` blocks, beyond the plain model's."""
    sizes = [
        per_token(built(m, n, width, method.scope), way, lengths) for n in (depth, depth - 1) for m in (method, None)
    ]
    return (sizes[0] - sizes[1] - sizes[2] + sizes[3]) / 2


def predicted(method: Method, width: int, depth: int) -> float | None:
    """What the method's formula gives for the same, in float32; ``None`` where it has none."""
    if not method.saved:
        return None
    if method.scope != "depth":
        sizes: dict[str, int] = {"heads": getattr(method, "heads", 0) or HEADS}
        sizes["head_dim"] = getattr(method, "head_dim", 0) or width // sizes["heads"]
        sizes |= {"n": depth} if method.scope == "route" else {}
        return 4.0 * numbers_of(method, d=width, **sizes)
    counts: list[list[tuple[int, int]]] = [[], []]
    for found, n in zip(counts, (depth, depth - 1), strict=True):
        model = built(method, n, width, method.scope)
        for read in (m for m in model.modules() if isinstance(m, Read)):
            read.register_forward_hook(
                lambda m, args, out, to=found: to.append((len(args[0]), len(out) if isinstance(out, tuple) else 1))
            )
        model(torch.randint(0, 500, (1, 32)))
    more, less = (sum(numbers_of(method, d=width, n=n, o=o) for n, o in found) for found in counts)
    return 4.0 * (more - less) / 2


def numbers_of(method: Method, **sizes: int) -> float:
    """The value of a method's formula; its options are names in it, where ``sizes`` does not say otherwise."""
    text = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", method.saved).replace("^", "**")
    return float(eval(text, {}, {**vars(method), **sizes}))


def row(name: str, method: Method, width: int, length: int, depth: int) -> dict[str, Any]:
    """What one method keeps, every way."""
    found: dict[str, Any] = {"group": f"d = {width}, float32, {length} tokens, block {depth} of {depth}", "case": name}
    found |= {
        "formula": method.saved,
        "predicted": None if (said := predicted(method, width, depth)) is None else round(said),
    }
    for way in WAYS:
        try:
            found[way] = round(measured(method, width, way, (length,), depth))
        except Exception as error:
            found[way] = f"{type(error).__name__}"
    print(*(found.get(k) for k in ("case", "formula", "predicted", *WAYS)), flush=True)
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", help="default: all")


def main() -> None:
    options = start(__doc__ or "", arguments)
    cases = {n: method_of(n) for n in methods()} | VARIANTS
    chosen = options.methods or list(cases)
    more, less = (per_token(built(None, n, WIDTH, ""), "eager", (LENGTH,)) for n in (DEPTH, DEPTH - 1))
    block = more - less
    rows = [row(name, cases[name], WIDTH, LENGTH, DEPTH) for name in chosen]
    head = (
        "What the forward pass of a training step keeps for its backward, beyond what the plain model does, in bytes"
        f" per token and residual add of a block within the stream; the plain one keeps {block / 2:.0f}"
        " for each of its two adds, eager. `formula`: what the method says it keeps at an add, in numbers"
        " (`d`: width; `n`: sources of a read, or channels; `o`: tensors that a read gives; `heads`: of the attention;"
        " the names of options are theirs; what stands once in a block is shared out to its two adds);"
        " `predicted`: that in bytes. `compiled`: one graph; below zero is less than the plain graph keeps."
        " `recomputed`: every block run again in the backward pass."
    )
    write("memory", rows, options, head, ("case", "formula", "predicted", *WAYS))


if __name__ == "__main__":
    main()
