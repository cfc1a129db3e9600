"""The depth methods written out as pathways of a residual stream, straight from the papers, with stacked tensors.

Nothing here uses the library's operators. A pathway takes a :class:`unrolled.Stream` and its first state, and joins the
host's branches as a paper says. ``bank`` gives the new parameters of a read; ``start`` is only a change of
parameters, except where the stream is normalised after every add (post-norm): it is then not the sum of what was
added, and a read of ``n a_i - 1`` corrects the state where elsewhere ``n a_i`` weighs the sum.
"""

from __future__ import annotations

import torch
from hosts import HEADS, WIDTH, Block, NanoGPT
from hosts.unrolled import Stream
from torch import nn
from torch.nn import functional as F

BLOCKS = 3


def deep_host(dtype=torch.float64, blocks=BLOCKS) -> NanoGPT:
    """The hand-written host with more blocks, in eval mode."""
    torch.manual_seed(0)
    model = NanoGPT()
    model.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(blocks))
    return model.to(dtype).eval()


class Bank:
    """The new parameters of a rewritten model by read: ``bank(block, at, kind)`` for the sublayer ``at`` of a block.

    Reads are named after the module that adds, and numbered where one module adds several times.
    """

    def __init__(self, new, method: str, parallel: bool) -> None:
        self.root, self.parallel = new.get_submodule(f"resfx.{method}"), parallel

    def __call__(self, block, at=0, kind="read"):
        owners = [b.owner for b in (block[:1] if self.parallel else block)]
        at = len(owners) - 1 if kind == "exit" else at
        order = owners[:at].count(owners[at])
        return dict(self.root.get_submodule(f"{owners[at]}.{kind}{order}").named_parameters())


def post_norm(stream: Stream) -> bool:
    return stream.blocks[0][0].after is not None


def units(stream: Stream):
    """``(block, number in it, its branches)`` of every sublayer; the branches of a parallel block are one."""
    for block in stream.blocks:
        yield from [(block, 0, block)] if stream.parallel else ((block, i, [b]) for i, b in enumerate(block))


def added(branches, h):
    """What a sublayer adds."""
    return sum(branch(h) for branch in branches)


def joined(branches, x, f):
    """The host's own add, and the norm behind it where there is one."""
    x = x + f
    return x if branches[-1].after is None else branches[-1].after(x)


def through(stream, block, q, k=None, v=None, shortcut=None):
    """A block from a state: ``(new state, sum of what its sublayers added)``.

    Attention opens the block with an input for each projection; ``q`` is the shortcut unless there is another one.
    """
    x = q if shortcut is None else shortcut
    first = block[0](q, k, v)
    if stream.parallel:
        first = first + added(block[1:], x)
        return x + first, first
    x, total = joined(block[:1], x, first), first
    for branch in block[1:]:
        f = branch(x)
        x, total = joined([branch], x, f), total + f
    return x, total


def rms(x, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def softmax_over(sources, p, eps):
    stack = torch.stack(sources)  # (n, batch, tokens, d)
    return torch.einsum("d,nbtd->nbt", p["query"], rms(stack, eps) * p["gain"]).softmax(0).unsqueeze(-1), stack


def groups(v, size):
    """The embedding, then sums of ``size`` outputs; the last may be unfinished."""
    return [v[0]] + [sum(v[i : i + size]) for i in range(1, len(v), size)]


def attn_res(stream, x, bank, start, block=1, eps=1e-6, two_phase=False, normalized=False):
    v, state = [x], x

    def read(p):
        if normalized:
            u = rms(torch.stack(groups(v, block)), eps)
            weights = (torch.einsum("nbtd,d->nbt", u, p["query"]) / x.shape[-1] ** 0.5).softmax(0)
            weights = weights if start == "published" else len(u) * weights - 1
            return torch.einsum("nbt,nbtd->btd", weights, u) + (0 if start == "published" else state)
        weights, stack = softmax_over(groups(v, block), p, eps)
        h = (weights * stack).sum(0)
        return h if start == "published" else h * len(stack) + (state - sum(v) if post_norm(stream) else 0)

    for owner, at, branches in units(stream):
        h = x if len(v) == 1 else read(bank(owner, at))
        v.append(added(branches, h))
        state = joined(branches, state, v[-1])
    return read(bank(stream.blocks[-1], kind="exit"))


def delta(stream, x, bank, start, block=1, partial=True, null=False, query="zero", eps=1e-6):
    v = [x]
    for owner, at, branches in units(stream):
        h, sources = x, groups(v, block)
        if not partial and (len(v) - 1) % block:
            sources = sources[:-1]
        if len(v) > 1 and len(sources) + null > 1:
            p = bank(owner, at)
            if null:
                sources = [*sources, p["null"].expand_as(x)]
            weights, stack = softmax_over(sources, p, eps)
            h = x + (p["gate"] if start == "preserve" else 1) * (weights * stack).sum(0)
        v.append(added(branches, h))
        x = joined(branches, x, v[-1])
    return x


def dense(stream, x, bank, start, dilation=1, period=1):
    states, y, last = [x], x, len(stream.blocks)
    for i, block in enumerate(stream.blocks, 1):
        y, _ = through(stream, block, y)
        states.append(y)
        if i % period == 0:
            p = bank(block, kind="exit") if i == last else bank(stream.blocks[i])
            chosen = [s for j, s in enumerate(states) if j % dilation == i % dilation]
            alpha = p["weight"]
            if start == "preserve":
                alpha = alpha + F.one_hot(torch.tensor(len(chosen) - 1), len(chosen))
            y = torch.einsum("n,nbtd->btd", alpha, torch.stack(chosen))
    return y


def lambdas(stream, x, bank, start, x0=True, skips=(), backout=False):
    outputs, own = [x], 1.0 if start == "preserve" else 0.0
    count = len(stream.blocks)
    for i, block in enumerate(stream.blocks):
        w = bank(block)["weight"]
        y = (w[-1] + own) * x
        if x0 and i:
            y, w = y + w[0] * outputs[0], w[1:]
        pairs = [a for a, b in skips if b == i and not (x0 and a == 0)]
        for a, weight in zip(pairs, w, strict=False):
            y = y + weight * outputs[a]
        x, _ = through(stream, block, y)
        outputs.append(x)
    if backout:
        w = bank(stream.blocks[-1], kind="exit")["weight"]
        x = (w[1] + own) * x + w[0] * outputs[min(count // 2 + 1, count - 1)]
    return x


def elc(stream, x, bank, start, variant="zero", eps=1e-7):
    o, state = [x], x
    norm = (lambda s: F.layer_norm(s, s.shape[-1:], eps=eps)) if variant == "normalized" else (lambda s: s)

    def average(p):
        read = torch.stack([o[0], *map(norm, o[1:])])  # the embedding stays as it is
        mixed = torch.einsum("n,nbtd->btd", p["logits"].softmax(0), read)
        if start == "published":
            return mixed
        return whole() + len(o) * mixed - read.sum(0)

    def whole():
        return state if post_norm(stream) else sum(o)

    for block in stream.blocks:
        h = x if len(o) == 1 else average(bank(block))
        shortcut = h
        if variant == "base" and not stream.parallel:  # the second sublayer reads what the first one wrote
            shortcut = (1 - bank(block)["cut"] if start == "preserve" else 0) * h
        state, output = through(stream, block, h, shortcut=shortcut)
        o.append(output)
    if variant == "weighted":
        return average(bank(stream.blocks[-1], kind="exit"))
    return whole() if start == "preserve" else norm(o[-1])


def dca(stream, x, bank, start, k=None, form="live", w_std=0.0):
    columns, state = [x], x

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
        return (g * weight).sum(-1) + (state - sum(columns) if post_norm(stream) else 0)

    for block in stream.blocks:
        p = bank(block)
        state, output = through(stream, block, *(grn(p["b"][i], p["w"][i]) for i in range(3)))
        columns.append(output)
    p = bank(stream.blocks[-1], kind="exit")
    return grn(p["b"][0], p["w"][0])


def mudd(
    stream, x, bank, start, streams="qkvr", prepost=False, hidden=None, dilation=1, period=1, window=None, eps=1e-6
):
    states, last = [x], len(stream.blocks)
    inputs = dict.fromkeys("qkvr", x)
    for i, block in enumerate(stream.blocks, 1):
        x, _ = through(stream, block, *(inputs[s] for s in "qkvr"))
        states.append(x)
        inputs = dict.fromkeys("qkvr", x)
        if i % period:
            continue
        names = "r" if i == last else streams
        p = bank(block, kind="exit") if i == last else bank(stream.blocks[i])
        weights = F.gelu(rms(x, eps) @ p["expand.weight"].T) @ p["weigh.weight"].T
        chosen = [s for j, s in enumerate(states) if (i - j) % dilation == 0]
        if window is not None and len(states) > window:
            chosen = [states[0], *states[len(states) - window :]]
        stack = torch.stack(chosen)
        weights = weights.unflatten(-1, (len(names), len(chosen))) + p["static"]
        if prepost:
            stack = rms(stack, eps) * p["gain"]
        mixed = torch.einsum("btcn,nbtd->cbtd", weights, stack)
        if prepost:
            mixed = x + p["scale"] * rms(mixed, eps)
        elif start == "preserve":
            mixed = x + mixed
        inputs |= dict(zip(names, mixed, strict=True))
    return inputs["r"]


def depth_read(stream, x, bank, start, window=4, heads=1, at="input", shared=False, norm=True, eps=1e-6, dim=None):
    states = []
    prepare = (lambda h: rms(h, eps)) if norm else (lambda h: h)
    for block in stream.blocks:
        states.append(x)
        p = bank(block)
        kv = (bank(stream.blocks[0], kind="shared") if shared
              else {n.removeprefix("projection."): t for n, t in p.items()})  # fmt: skip
        w = prepare(torch.stack(states if window is None else states[-window:], -2))  # (batch, tokens, K, d)
        value = (w @ kv["value.weight"].T).unflatten(-1, (heads, -1)).transpose(-2, -3)
        if w.shape[-2] > 1:
            q = (prepare(x) @ p["query.weight"].T).unflatten(-1, (heads, 1, -1))
            key = (w @ kv["key.weight"].T).unflatten(-1, (heads, -1)).transpose(-2, -3)
            value = ((q @ key.mT) / q.shape[-1] ** 0.5).softmax(-1) @ value
        h = x + value.squeeze(-2).flatten(-2) @ p["out.weight"].T
        if at == "stream":
            x, _ = through(stream, block, h)
        elif stream.parallel:
            x = x + added(block, h)
        else:
            x, _ = through(stream, block, h, shortcut=x)
    return x


def vertical(stream, x, bank, start, routing="static", eps=1e-6):
    states = []
    for block in stream.blocks:
        states.append(x)
        if len(states) > 1:
            p = bank(block)
            stack = rms(torch.stack(states), eps)
            logits = p["logits"]
            if routing == "content":
                logits = torch.einsum("d,nbtd->nbt", logits, stack).unsqueeze(-1)
            else:
                logits = logits.view(-1, 1, 1, 1)
            x = x + (p["gate"] if start == "preserve" else 1) * (logits.softmax(0) * stack).sum(0)
        x, _ = through(stream, block, x)
    return x
