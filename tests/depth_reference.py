"""The depth methods written out on a hand-written decoder, straight from the papers' equations, with stacked tensors.

Nothing here uses the library's operators. ``bank(i, kind)`` gives the new parameters of a read as a dictionary.
"""

from __future__ import annotations

import torch
from hosts import HEADS, WIDTH, Block, NanoGPT
from torch import nn
from torch.nn import functional as F

BLOCKS = 3


def deep_host(dtype=torch.float64) -> NanoGPT:
    """The nanoGPT host with three blocks, in eval mode."""
    torch.manual_seed(0)
    model = NanoGPT()
    model.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(BLOCKS))
    return model.to(dtype).eval()


def embed(model, idx):
    return model.wte(idx) + model.wpe(torch.arange(idx.shape[1]))


def head(model, x):
    return model.head(model.ln_f(x))


def attend(block, q, k, v):
    """Attention of a block with an input of its own for each projection."""
    d = WIDTH
    w, b = block.qkv.weight, block.qkv.bias
    rows = [F.linear(block.ln_1(h), w[i * d : (i + 1) * d], b[i * d : (i + 1) * d]) for i, h in enumerate((q, k, v))]
    q, k, v = (r.unflatten(-1, (HEADS, d // HEADS)).transpose(1, 2) for r in rows)
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return block.proj(z.transpose(1, 2).flatten(-2))


def mlp(block, h):
    return block.out(F.gelu(block.fc(block.ln_2(h))))


def sublayers(model):
    for block in model.blocks:
        yield lambda h, b=block: attend(b, h, h, h)
        yield lambda h, b=block: mlp(b, h)


def rms(x, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def softmax_over(sources, p, eps):
    stack = torch.stack(sources)  # (n, batch, tokens, d)
    return torch.einsum("d,nbtd->nbt", p["query"], rms(stack, eps) * p["gain"]).softmax(0), stack


def groups(v, size):
    """The embedding, then sums of ``size`` outputs; the last may be unfinished."""
    return [v[0]] + [sum(v[i : i + size]) for i in range(1, len(v), size)]


def attn_res(model, idx, bank, start, block=1, eps=1e-6):
    v = [embed(model, idx)]

    def read(i, kind):
        weights, stack = softmax_over(groups(v, block), bank(i, kind), eps)
        h = (weights.unsqueeze(-1) * stack).sum(0)
        return h * len(stack) if start == "preserve" else h

    for i, f in enumerate(sublayers(model)):
        v.append(f(v[0] if i == 0 else read(i, "read")))
    return head(model, read(2 * BLOCKS, "exit"))


def delta(model, idx, bank, start, block=1, partial=True, null=False, eps=1e-6):
    x = embed(model, idx)
    v = [x]
    for i, f in enumerate(sublayers(model)):
        h = x
        sources = groups(v, block)
        if not partial and (len(v) - 1) % block:
            sources = sources[:-1]
        if i and len(sources) + null > 1:
            p = bank(i, "read")
            if null:
                sources = [*sources, p["null"].expand_as(x)]
            weights, stack = softmax_over(sources, p, eps)
            h = x + p.get("gate", 1) * (weights.unsqueeze(-1) * stack).sum(0)
        v.append(f(h))
        x = x + v[-1]
    return head(model, x)


def block_of(model, i, h):
    """A block as the host runs it."""
    h = h + attend(model.blocks[i], h, h, h)
    return h + mlp(model.blocks[i], h)


def dense(model, idx, bank, start, dilation=1, period=1):
    states, y = [embed(model, idx)], embed(model, idx)
    for i in range(1, BLOCKS + 1):
        states.append(block_of(model, i - 1, y))
        y = states[i]
        if i % period == 0:
            alpha = bank(i, "read" if i < BLOCKS else "exit")["weight"]
            chosen = [s for j, s in enumerate(states) if j % dilation == i % dilation]
            if start == "preserve":
                alpha = alpha + F.one_hot(torch.tensor(len(chosen) - 1), len(chosen))
            y = torch.einsum("n,nbtd->btd", alpha, torch.stack(chosen))
    return head(model, y)


def elc(model, idx, bank, start, variant="zero", eps=1e-7):
    o = [embed(model, idx)]
    norm = (lambda s: F.layer_norm(s, (WIDTH,), eps=eps)) if variant == "normalized" else (lambda s: s)

    def average(a):
        n = len(o)
        mixed = torch.einsum("n,nbtd->btd", a.softmax(0), norm(torch.stack(o)))
        if start == "published":
            return mixed
        return sum(o) + n * mixed - norm(torch.stack(o)).sum(0)

    for n in range(1, BLOCKS + 1):
        h = o[0] if n == 1 else average(bank(n - 1, "read")["logits"])
        a = attend(model.blocks[n - 1], h, h, h)
        o.append(a + mlp(model.blocks[n - 1], h + a))
    if variant == "weighted":
        return head(model, average(bank(BLOCKS, "exit")["logits"]))
    return head(model, sum(o) if start == "preserve" else o[-1])


def dca(model, idx, bank, start, k=None, form="live"):
    columns = [embed(model, idx)]

    def grn(b, w):
        g = columns
        if k is not None and len(columns) > k + 1:
            recent = columns[len(columns) - k :]
            middle = columns[1 : len(columns) - k]
            g = [columns[0], *([sum(middle)] if middle else []), *recent]
        g = torch.stack(g, -1)  # (batch, tokens, d, t)
        b = b.mT + (1 if start == "preserve" else 0)
        dynamic = torch.einsum("d,btdn->btn", w, g).unsqueeze(2)
        weight = torch.relu(b + dynamic) if form == "live" else b + torch.relu(dynamic)
        return (g * weight).sum(-1)

    for n in range(BLOCKS):
        p = bank(n, "read")
        q, key, value = (grn(p["b"][i], p["w"][i]) for i in range(3))
        a = attend(model.blocks[n], q, key, value)
        columns.append(a + mlp(model.blocks[n], q + a))
    p = bank(BLOCKS, "exit")
    return head(model, grn(p["b"][0], p["w"][0]))


def mudd(model, idx, bank, start, streams="qkvr", prepost=False, eps=1e-6):
    x = embed(model, idx)
    states = [x]
    inputs = dict.fromkeys("qkvr", x)
    for i in range(1, BLOCKS + 1):
        block = model.blocks[i - 1]
        s = inputs["r"] + attend(block, inputs["q"], inputs["k"], inputs["v"])
        x = s + mlp(block, s)
        states.append(x)
        last = i == BLOCKS
        names = "r" if last else streams
        p = bank(i, "exit" if last else "read")
        weights = F.gelu(rms(x, eps) @ p["expand.weight"].T) @ p["weigh.weight"].T
        weights = weights.unflatten(-1, (len(names), i + 1)) + p["static"]
        stack = torch.stack(states)
        if prepost:
            stack = rms(stack, eps) * p["gain"]
        mixed = torch.einsum("btcn,nbtd->cbtd", weights, stack)
        if prepost:
            mixed = x + p["scale"] * rms(mixed, eps)
        elif start == "preserve":
            mixed = x + mixed
        inputs = dict.fromkeys("qkvr", x) | dict(zip(names, mixed, strict=True))
    return head(model, inputs["r"])


def depth_read(model, idx, bank, start, window=4, heads=1, at="input", shared=False, norm=True, eps=1e-6, dim=None):
    x = embed(model, idx)
    states = []
    prepare = (lambda h: rms(h, eps)) if norm else (lambda h: h)
    for i in range(BLOCKS):
        states.append(x)
        p = bank(i, "read")
        kv = bank(0, "shared") if shared else {n.removeprefix("projection."): t for n, t in p.items()}
        w = prepare(torch.stack(states if window is None else states[-window:], -2))  # (batch, tokens, K, d)
        value = (w @ kv["value.weight"].T).unflatten(-1, (heads, -1)).transpose(-2, -3)
        if w.shape[-2] > 1:
            q = (prepare(x) @ p["query.weight"].T).unflatten(-1, (heads, 1, -1))
            key = (w @ kv["key.weight"].T).unflatten(-1, (heads, -1)).transpose(-2, -3)
            value = ((q @ key.mT) / q.shape[-1] ** 0.5).softmax(-1) @ value
        h = x + value.squeeze(-2).flatten(-2) @ p["out.weight"].T
        s = (h if at == "stream" else x) + attend(model.blocks[i], h, h, h)
        x = s + mlp(model.blocks[i], s)
    return head(model, x)


def vertical(model, idx, bank, start, routing="static", eps=1e-6):
    x = embed(model, idx)
    states = []
    for i in range(BLOCKS):
        states.append(x)
        if i:
            p = bank(i, "read")
            stack = rms(torch.stack(states), eps)
            if routing == "static":
                z = torch.einsum("n,nbtd->btd", p["logits"].softmax(0), stack)
            else:
                z = torch.einsum("nbt,nbtd->btd", torch.einsum("d,nbtd->nbt", p["logits"], stack).softmax(0), stack)
            x = x + p.get("gate", 1) * z
        x = block_of(model, i, x)
    return head(model, x)
