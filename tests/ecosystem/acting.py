"""What acts on modules in place: attributes, swapped layers, parametrizations, pruning."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from .tool import IDS, LONGER, Limit, Make, hold_changed, hold_equal, hold_step, llama, logits, tool


class Scaled(nn.Module):
    """A layer around another."""

    def __init__(self, inner: nn.Module, by: float) -> None:
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs) * self.by

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class LowRank(nn.Module):
    """A linear layer of two factors, as a pruning library puts in the place of one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        u, s, v = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
        self.down = nn.Parameter((s[:4, None] * v[:4]).contiguous())
        self.up = nn.Parameter(u[:, :4].contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.down.T @ self.up.T


@tool("an inner layer swapped for one of another class")
def swapped(make: Make) -> None:
    def change(model: Any) -> None:
        for layer in model.model.layers:
            layer.mlp.down_proj = LowRank(layer.mlp.down_proj)

    hold_changed(make, change)


@tool("a whole sublayer swapped (MLP, norm)")
def swapped_sublayer(make: Make) -> None:
    def change(model: Any) -> None:
        torch.manual_seed(2)
        model.model.layers[0].mlp = nn.Sequential(nn.Linear(32, 40), nn.GELU(), nn.Linear(40, 32))
        model.model.layers[1].post_attention_layernorm = nn.LayerNorm(32)

    hold_changed(make, change)


@tool("an inner layer wrapped in a module")
def wrapped(make: Make) -> None:
    def change(model: Any) -> None:
        model.model.layers[1].mlp = Scaled(model.model.layers[1].mlp, 0.5)

    hold_changed(make, change)


@tool("a block wrapped in a module")
def wrapped_block(make: Make) -> None:
    def change(model: Any) -> None:
        model.model.layers[1] = Scaled(model.model.layers[1], 1.0)

    for model, other in ((make.plain(), make.cold(0.0)), (make(), make.cold())):
        change(other)
        for ids in (IDS, LONGER):
            hold_equal(logits(model, ids), logits(other, ids))


@tool("the last block removed")
def removed(make: Make) -> None:
    def change(model: Any) -> None:
        model.model.layers = model.model.layers[:-1]
        model.config.num_hidden_layers = 1

    plain, start = make.plain(), make.start()
    change(plain)
    change(start)
    hold_equal(logits(plain), logits(start))
    hold_equal(logits(plain, LONGER), logits(start, LONGER))


@tool("a plain block appended")
def appended(make: Make) -> None:
    def change(model: Any) -> None:
        model.model.layers.append(llama(num_hidden_layers=3).model.layers[2])
        model.config.num_hidden_layers = 3

    plain, start, moved = make.plain(), make.start(), make()
    before = logits(moved)
    for model in (plain, start, moved):
        change(model)
    hold_equal(logits(plain), logits(start))
    hold_equal(logits(plain, LONGER), logits(start, LONGER))
    assert not torch.equal(before, logits(moved))


@tool("blocks in another order")
def reordered(make: Make) -> None:
    def change(model: Any) -> None:
        first, second = model.model.layers
        model.model.layers[0], model.model.layers[1] = second, first

    plain, start = make.plain(), make.start()
    change(plain)
    change(start)
    hold_equal(logits(plain), logits(start))


@tool("attributes changed: eps, an activation, a scale")
def attributes(make: Make) -> None:
    def change(model: Any) -> None:
        for layer in model.model.layers:
            layer.post_attention_layernorm.variance_epsilon = 0.5  # mixers before attention keep a copy of its norm
            layer.mlp.act_fn = nn.Tanh()
            layer.self_attn.scaling = 0.1

    hold_changed(make, change)


@tool("dropout switched on and off by its p")
def dropout(make: Make) -> None:
    for host in ("gpt2", "llama, eager attention"):
        plain, start, moved = (m.train() for m in (make.plain(host), make.start(host), make(host=host)))
        for p in (0.5, 0.0, 0.2):
            for model in (plain, start, moved):
                for part in model.modules():
                    if isinstance(part, nn.Dropout):
                        part.p = p
                    if hasattr(part, "attention_dropout"):
                        part.attention_dropout = p
            hold_step(plain, start, what=f"at p={p}")
            hold_step(moved, moved, what=f"at p={p}, from one seed")


@tool("weights frozen and thawed")
def frozen(make: Make) -> None:
    plain, start = make.plain().train(), make.start().train()
    for flag in (False, True):
        for model in (plain, start):
            model.model.layers[0].requires_grad_(flag)
            model.model.embed_tokens.requires_grad_(flag)
        hold_step(plain, start)


@tool("torch.nn.utils.parametrizations: weight_norm, orthogonal, spectral_norm")
def parametrized(make: Make) -> None:
    def change(model: Any) -> None:
        for layer in model.model.layers:
            parametrizations.weight_norm(layer.mlp.down_proj)
            torch.manual_seed(3)
            parametrizations.orthogonal(layer.self_attn.q_proj)
            parametrizations.spectral_norm(layer.self_attn.o_proj).eval()

    plain, start, moved = make.plain(), make.start(), make()
    before = logits(moved)
    for model in (plain, start, moved):
        change(model)
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids))
    assert not torch.equal(before, logits(moved))
    for model in (plain, start):
        model.train()
        for part in model.modules():
            if hasattr(part, "parametrizations"):
                part.parametrizations.eval()  # a spectral norm that trains moves its vectors in every call
    hold_step(plain, start)


@tool("a parametrization on a norm's weight and on new parameters")
def parametrized_new(make: Make) -> None:
    class Halved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    def change(model: Any) -> None:
        nn.utils.parametrize.register_parametrization(
            model.model.layers[0].post_attention_layernorm, "weight", Halved()
        )

    hold_changed(make, change)
    if make.mode is None:
        return
    moved, twin = make(), make()
    name = next(n for n, p in moved.new_parameters().items() if p.ndim)
    owner, _, leaf = name.rpartition(".")
    nn.utils.parametrize.register_parametrization(moved.get_submodule(owner), leaf, Halved())
    with torch.no_grad():
        twin.get_parameter(name).mul_(0.5)
    for ids in (IDS, LONGER):
        hold_equal(logits(twin, ids), logits(moved, ids), 1e-6, "new parameters halved")


@tool("torch.nn.utils.prune: random, magnitude, made permanent")
def pruned(make: Make) -> None:
    def change(model: Any, last: bool) -> None:
        for layer in model.model.layers:
            torch.manual_seed(4)
            prune.random_unstructured(layer.self_attn.v_proj, "weight", 0.5)
            prune.l1_unstructured(layer.mlp.up_proj, "weight", 0.5)
            if last:
                prune.remove(layer.mlp.up_proj, "weight")
                prune.remove(layer.self_attn.v_proj, "weight")

    hold_changed(make, functools.partial(change, last=True))
    plain, start = make.plain(), make.start()
    change(plain, False)
    change(start, False)
    hold_equal(logits(plain), logits(start))
    hold_step(plain.train(), start.train())


@tool("an instance's forward replaced (inner module, block, root)")
def patched(make: Make) -> None:
    def patch(module: Any, by: float) -> None:
        own = module.forward

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            found = own(*args, **kwargs)
            if torch.is_tensor(found):
                return found * by
            found.logits = found.logits * by
            return found

        module.forward = forward

    plain, start, moved = make.plain(), make.start(), make()
    before = logits(moved)
    for model in (plain, start, moved):
        patch(model.model.layers[0].mlp, 0.5)
        patch(model, 2.0)
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids))
    assert not torch.equal(before, logits(moved))
    calls = []
    layer = moved.model.layers[1]
    own = layer.forward
    layer.forward = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    hold_equal(logits(moved), logits(moved))
    assert len(calls) == 2, "a block's own forward is passed by"


@tool("resize_token_embeddings, weights tied afterwards")
def resized(make: Make) -> None:
    def change(model: Any) -> None:
        torch.manual_seed(6)
        model.resize_token_embeddings(80, mean_resizing=False)
        model.lm_head.weight = model.model.embed_tokens.weight

    hold_changed(make, change)


@tool("model.apply, named_modules walked: torchinfo of the tree", needs="torchinfo")
def walked(make: Make) -> None:
    model = make()
    seen: list[str] = []
    model.apply(lambda m: seen.append(type(m).__name__))
    assert len(seen) == len(list(model.modules()))
    assert _counted(model) == sum(p.numel() for p in model.parameters())


class Borrowing(nn.Module):
    """A block that runs a module which another part of the model holds, between its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, lent: nn.Module) -> torch.Tensor:
        return self.second(lent(self.first(x)))


class Lent(nn.Module):
    """A plain model of such blocks, as rewritten code runs the modules below ``resfx``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(Borrowing() for _ in range(2))
        self.bank = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, lent in zip(self.body, self.bank.values(), strict=True):
            x = block(x, lent)
        return x


def _counted(model: nn.Module, **call: Any) -> int:
    import torchinfo

    return torchinfo.summary(model, verbose=0, depth=9, **call).total_params


@tool("torchinfo of a call", needs="torchinfo")
def walked_call(make: Make) -> None:
    model, lent = make(), Lent()
    total, found = sum(p.numel() for p in model.parameters()), _counted(model, input_data={"input_ids": IDS})
    hold_equal(logits(model), logits(make()))
    if found == total:
        return
    plain = sum(p.numel() for p in lent.parameters()), _counted(lent, input_size=(1, 4))
    assert plain[0] != plain[1], f"{found} of {total} parameters counted"
    raise Limit(
        "it takes what runs after a module for its children, and counts parameters again where a module runs outside of"
        f" the one that holds it: a plain model with {plain[0]} has {plain[1]}, this one {found} instead of {total};"
        " without input_data the count is right"
    )
