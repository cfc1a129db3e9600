"""Hand-written transformer layers, one for each way to write a shortcut, and the stack that holds them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

D = 16


class Attention(nn.Module):
    def __init__(self, d: int = D, heads: int = 4, bias: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.heads, self.bias = heads, nn.Parameter(torch.randn(heads, 8, 8)) if bias else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = (f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f, z in
                   ((self.q, x), (self.k, source), (self.v, source)))  # fmt: skip
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.bias is not None:
            scores = scores + self.bias
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def mlp(d: int = D) -> nn.Sequential:
    """Two linear layers around a GELU."""
    return nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))


class Rms(nn.Module):
    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Layer(nn.Module):
    """One transformer layer, its shortcut written in the way ``style`` says."""

    def __init__(self, style: str = "pre") -> None:
        super().__init__()
        self.style, self.attn, self.mlp, self.n1, self.n2 = style, Attention(bias=style == "bias"), mlp(), Rms(), Rms()
        self.a, self.b = (nn.Parameter(torch.full((1,), 0.1)) for _ in range(2))
        self.cond = nn.Linear(D, 4 * D)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        match self.style:
            case "post":
                x = self.n1(x + self.attn(x))
                return self.n2(self.mlp(x) + x)
            case "parallel":
                return x + self.attn(self.n1(x)) + self.mlp(self.n2(x))
            case "joint":
                h = self.n1(x)
                return self.attn(h) + self.mlp(h) + x
            case "rezero":
                x = x + self.a * self.attn(x)
                return x + self.b * self.mlp(x)
            case "deepnorm":
                x = self.n1(x * 1.7 + self.attn(x))
                return self.n2(1.7 * x + self.mlp(x))
            case "multiplier":
                x = torch.add(x, self.attn(self.n1(x)), alpha=0.22)
                return torch.add(x, self.mlp(self.n2(x)), alpha=0.22)
            case "adaln":
                s1, g1, s2, g2 = self.cond(F.silu(c)).unsqueeze(1).chunk(4, -1)
                x = x + g1 * self.attn(self.n1(x) * (1 + s1))
                return x + g2 * self.mlp(self.n2(x) * (1 + s2) + s2)
            case "float32":
                x = (x.float() + self.attn(self.n1(x)).float()).to(x.dtype)
                return x.float().add_(self.mlp(self.n2(x))).to(x.dtype)
        x = x + self.attn(self.n1(x))
        return x + self.mlp(self.n2(x))


class Stack(nn.Module):
    """Tokens, positions and types, layers, a tied head."""

    def __init__(self, *layers: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.embed, self.pos, self.kind = nn.Embedding(99, D), nn.Embedding(32, D), nn.Embedding(2, D)
        self.layers, self.norm, self.twice = nn.ModuleList(layers), Rms(), twice

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.pos(torch.arange(ids.shape[1])) + self.kind(ids % 2)
        for layer in [*self.layers, *(self.layers if self.twice else ())]:
            x = layer(x)
        return self.norm(x) @ self.embed.weight.T


class Experts(nn.Module):
    """A shared expert plus gated experts: sums of branches, no shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.shared, self.experts = nn.Linear(D, 3), mlp(), nn.ModuleList(mlp() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weight, out = self.gate(x).softmax(-1), self.shared(x)
        for i, expert in enumerate(self.experts):
            out = out + weight[..., i : i + 1] * expert(x)
        return out


class ExpertLayer(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Experts()  # type: ignore[assignment]


class MacaronLayer(nn.Module):
    """Conformer: half feed-forward, attention, gated convolution, half feed-forward, norm."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2, self.attn = mlp(), mlp(), Attention()
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(5))
        self.up, self.dw, self.down = (
            nn.Conv1d(D, 2 * D, 1),
            nn.Conv1d(D, D, 3, padding=1, groups=D),
            nn.Conv1d(D, D, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        n = self.norms
        x = x + 0.5 * self.f1(n[0](x))
        x = x + self.attn(n[1](x))
        h = self.down(F.silu(self.dw(F.glu(self.up(n[2](x).transpose(1, 2)), 1))))
        x = x + h.transpose(1, 2)
        return n[4](x + 0.5 * self.f2(n[3](x)))


class ScanLayer(nn.Module):
    """A selective state-space mixer written as a loop: the state's update and ``y + D x`` are no shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.out = Rms(), nn.Linear(D, 2 * D), nn.Linear(D, D)
        self.dt, self.bc = nn.Linear(D, D), nn.Linear(D, 8)
        self.log_a, self.skip = nn.Parameter(torch.zeros(D, 4)), nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.up(self.norm(x)).chunk(2, -1)
        dt, (b, c) = F.softplus(self.dt(u)), self.bc(u).chunk(2, -1)
        state, ys = x.new_zeros(x.shape[0], D, 4), []
        for t in range(4):
            decay = torch.exp(-dt[:, t, :, None] * self.log_a.exp())
            state = decay * state + dt[:, t, :, None] * b[:, t, None] * u[:, t, :, None]
            ys.append((state * c[:, t, None]).sum(-1))
        return x + self.out((torch.stack(ys, 1) + u * self.skip) * F.silu(z))


class Adapted(Layer):
    """An adapter with its own shortcut inside each branch: residuals inside residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, D))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.attn(self.n1(x))
        x = x + (h + self.adapter(h))
        h = self.mlp(self.n2(x))
        return x + (h + self.adapter(h))


class Rotary(Layer):
    """Rotary positions: ``x cos + rotate(x) sin`` is no residual add."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.n1(x)
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.arange(D // 2).repeat(2)
        half = torch.cat((-h[..., D // 2 :], h[..., : D // 2]), -1)
        x = x + self.attn(h * angle.cos() + half * angle.sin())
        return x + self.mlp(self.n2(x))


class Injected(Layer):
    """A shared block adds to what a branch reads, not to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.n1(x + self.shared(x)))
        return x + self.mlp(self.n2(x))


class Joined(Layer):
    """The first token goes its own way: ``cat(x0, x) + cat(f0, f)``; then a shortcut with gain and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        first, rest = x[:, :1], x[:, 1:]
        f = self.attn(self.n1(rest))
        x = torch.cat((first, rest), 1) + torch.cat((self.attn(self.n1(first), f), f), 1)
        return (x + self.bias) * self.gain + self.mlp(self.n2(x))


class PooledQueries(Layer):
    """Queries and keys are pooled; heads are added to their queries before they are projected. The first layer's
    shortcut has a projection, from the norm that the attention reads."""

    def __init__(self, projects: bool = False) -> None:
        super().__init__()
        self.attn = self.Pooling()
        self.shortcut = nn.Linear(D, D) if projects else None

    class Pooling(Attention):
        def __init__(self) -> None:
            super().__init__()
            self.pools = nn.ModuleList(nn.Conv1d(D // 4, D // 4, 3, padding=1, groups=D // 4) for _ in range(2))
            self.norms = nn.ModuleList(nn.LayerNorm(D // 4) for _ in range(2))

        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            q, k = (norm(pool(y.flatten(0, 1).transpose(1, 2)).transpose(1, 2).unflatten(0, y.shape[:2]))
                    for y, pool, norm in zip((q, k), self.pools, self.norms, strict=True))  # fmt: skip
            x = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
            return self.o((x + q).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.n1(x)
        x = (x if self.shortcut is None else self.shortcut(h)) + self.attn(h)
        return x + self.mlp(self.n2(x))


class Decomposed(Layer):
    """Averages over a window are taken off the state and summed: the sum of averages is no residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(D, D)

    def average(self, x: Tensor) -> Tensor:
        x = torch.cat((x[:, 0:1, :].repeat(1, 2, 1), x, x[:, -1:, :].repeat(1, 2, 1)), 1)
        return F.avg_pool1d(x.permute(0, 2, 1), 5, 1).permute(0, 2, 1)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.n1(x))
        slow = self.average(x)
        x = x - slow
        x = x + self.mlp(self.n2(x))
        slower = self.average(x)
        return (x - slower) * torch.tanh(self.project(slow + slower))
