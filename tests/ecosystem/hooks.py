"""Hooks: what they see, and that what they change counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .tool import IDS, LONGER, Make, hold_equal, hold_step, logits, step, tensors, tool

SEEN = ("model.layers.0", "model.layers.1", "model.layers.0.mlp", "model.layers.1.self_attn.q_proj", "model.norm", "")


def _watch(model: Any, seen: dict[str, list[Any]]) -> None:
    for name in SEEN:
        module = model.get_submodule(name)
        note = lambda *what, name=name: seen.setdefault(name, []).append(what)
        module.register_forward_pre_hook(
            lambda m, a, k, note=note: note("in", a, sorted(k), tensors(k)), with_kwargs=True
        )
        module.register_forward_hook(
            lambda m, a, k, out, note=note: note("out", a, sorted(k), tensors(out)), with_kwargs=True
        )


def _narrow(wide: list[torch.Tensor], like: list[torch.Tensor]) -> tuple[list[torch.Tensor], bool]:
    """Streams of several channels as the one stream that they are copies of at the start."""
    found = [t.mean(-2) if t.ndim == x.ndim + 1 else t for t, x in zip(wide, like, strict=True)]
    return found, any(t.ndim == x.ndim + 1 for t, x in zip(wide, like, strict=True))


@tool("forward hooks on blocks and inner layers see what they would see")
def seen(make: Make) -> str:
    widened: set[str] = set()
    found: list[dict[str, list[Any]]] = []
    for model in (make.plain(), make.start()):
        found.append({})
        _watch(model, found[-1])
        for ids in (IDS, LONGER):
            logits(model, ids)
        step(model.train())
    a, b = found
    assert {n: len(v) for n, v in a.items()} == {n: len(v) for n, v in b.items()}, "other numbers of calls"
    for name, calls in a.items():
        for x, y in zip(calls, b[name], strict=True):
            extra = set(y[2]) - {"resfx"}
            assert x[0] == y[0] and set(x[2]) == extra, f"{name or 'root'}: arguments {x[2]} became {y[2]}"
            for part in (1, 3) if tensors(x[1]) else (3,):
                if like := tensors(x[part]):
                    ours, wide = _narrow(tensors(y[part])[: len(like)], like)
                    widened |= {name} if wide else set()
                    hold_equal(
                        like, ours, 1e-6 if wide else 0.0, f"{name or 'root'}: {'arguments' if part == 1 else x[0]}"
                    )
    return f"{', '.join(sorted(widened))}: streams in all their channels" if widened else ""


@tool("hooks that change results: steering of a block, of an inner layer")
def steering(make: Make) -> None:
    torch.manual_seed(9)
    direction = torch.randn(32)

    def change(model: Any) -> None:
        model.model.layers[0].register_forward_hook(lambda m, a, out: out + direction)
        model.model.layers[1].mlp.register_forward_hook(lambda m, a, out: out - 0.5 * direction)

    plain, start, moved = make.plain(), make.start(), make()
    before = logits(moved)
    for model in (plain, start, moved):
        change(model)
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids), 1e-6)
    assert not torch.equal(before, logits(moved))
    hold_step(plain.train(), start.train())


@tool("pre-hooks that change arguments, by position and by name")
def arguments(make: Make) -> None:
    def change(model: Any) -> None:
        model.model.layers[1].register_forward_pre_hook(lambda m, a: (a[0] * 0.5, *a[1:]))
        model.model.layers[0].self_attn.register_forward_pre_hook(
            lambda m, a, k: (a, {**k, "hidden_states": k["hidden_states"] * 2}), with_kwargs=True
        )

    plain, start = make.plain(), make.start()
    change(plain)
    change(start)
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids), 1e-6)


@tool("activations patched from one call into another")
def patching(make: Make) -> None:
    found = []
    for model in (make.plain(), make.start()):
        kept: list[torch.Tensor] = []
        handle = model.model.layers[0].register_forward_hook(lambda m, a, out, kept=kept: kept.append(out.clone()))
        logits(model)
        handle.remove()

        def put(m: Any, a: Any, out: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            out = out.clone()
            out[:, 3] = kept[0][:, 3]
            return out

        model.model.layers[0].register_forward_hook(put)
        found.append(logits(model, IDS.flip(1)))
    hold_equal(*found)


@tool("full backward hooks and pre-hooks on blocks and inner layers")
def backward(make: Make) -> None:
    found: list[list[Any]] = []
    for model in (make.plain(), make.start()):
        calls: list[Any] = []
        for name in ("model.layers.0", "model.layers.1", "model.layers.0.mlp.down_proj", "model.norm"):
            module = model.get_submodule(name)
            module.register_full_backward_hook(lambda m, i, o, n=name, c=calls: c.append((n, o, i)))
            module.register_full_backward_pre_hook(lambda m, o, n=name, c=calls: c.append((n, o)))
        step(model.train())
        found.append(calls)
    a, b = found
    assert sorted(c[0] for c in a) == sorted(c[0] for c in b), f"{len(a)} calls became {len(b)}"
    key = lambda c: (c[0], len(c))
    for x, y in zip(sorted(a, key=key), sorted(b, key=key), strict=True):
        left, right = tensors(x[1:]), tensors(y[1:])
        same = [i for i, (g, h) in enumerate(zip(left, right, strict=True)) if g.ndim == h.ndim]  # not of channels
        if same:
            hold_equal([left[i] for i in same], [right[i] for i in same], 1e-5, x[0])


@tool("backward hooks that change gradients")
def backward_changed(make: Make) -> None:
    def change(model: Any) -> None:
        model.model.layers[0].mlp.down_proj.register_full_backward_hook(lambda m, i, o: (i[0] * 3,))
        model.model.layers[1].register_full_backward_pre_hook(lambda m, o: (o[0] * 2,))

    plain, start = make.plain(), make.start()
    change(plain)
    change(start)
    hold_step(plain.train(), start.train())


@tool("hooks on every module at once, and retain_grad of what they see")
def everywhere(make: Make) -> None:
    found = []
    for model in (make.plain(), make.start()):
        kept: dict[str, torch.Tensor] = {}
        names = {m: n for n, m in model.named_modules()}

        def hook(m: nn.Module, a: Any, out: Any, kept: Any = kept, names: Any = names) -> None:
            if torch.is_tensor(out) and out.requires_grad and not names.get(m, "resfx").startswith("resfx"):
                out.retain_grad()
                kept[names[m]] = out

        handle = nn.modules.module.register_module_forward_hook(hook)
        try:
            step(model.train())
        finally:
            handle.remove()
        found.append({n: t.grad for n, t in kept.items() if t.grad is not None})
    a, b = found
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    scale = max(float(g.abs().max()) for g in a.values())
    for name, grad in a.items():
        if grad.ndim == b[name].ndim:  # not of the channels of a widened stream
            assert float((grad - b[name]).abs().max()) <= 1e-5 * scale, name


@tool("a hook put on between calls and taken off again")
def temporary(make: Make) -> None:
    model = make()
    before = logits(model)
    for name in ("model.layers.0", "model.layers.1.mlp.gate_proj", "model"):
        seen: list[int] = []
        handle = model.get_submodule(name).register_forward_hook(lambda *a, seen=seen: seen.append(1))
        hold_equal(before, logits(model))
        assert seen == [1], f"{name}: called {len(seen)} times"
        handle.remove()
    hold_equal(before, logits(model))


@tool("hooks of state_dict and load_state_dict")
def states(make: Make) -> None:
    model, twin = make(), make(0.0)
    model._register_state_dict_hook(lambda m, state, prefix, meta: state.update({prefix + "note": torch.ones(1)}))
    twin.register_load_state_dict_pre_hook(lambda m, state, prefix, *rest: state.pop(prefix + "note"))
    twin.load_state_dict(model.state_dict())
    hold_equal(logits(model), logits(twin))
