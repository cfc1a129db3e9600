"""Hand-written networks that are more than a stack of layers: windows, latents, gates, two streams, two inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .plain_layers import Attention, D, Layer, mlp


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer("adaln") for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = torch.cat((t.sin(), t.cos()), -1)
        for layer in self.layers:
            x = layer(x, c)
        return x


class Windows(nn.Module):
    """Shifted windows: the branch rolls, cuts, attends and puts back."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.attn, self.mlp, self.n1, self.n2 = shift, Attention(), mlp(), nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, d = x.shape
        y = torch.roll(self.n1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // 4, 4, w // 4, 4, d).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, d)
        y = self.attn(y).view(b, h // 4, w // 4, 4, 4, d).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, d)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.n2(x))


class WindowNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.merge, self.blocks = (
            nn.Conv2d(3, D, 4, 4),
            nn.Linear(4 * D, D),
            nn.ModuleList(Windows(s) for s in (0, 2, 0)),
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).permute(0, 2, 3, 1)
        x = self.blocks[1](self.blocks[0](x))
        x = self.merge(torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1))
        return self.blocks[2](x)


class Gated(nn.Module):
    """A highway layer and a GRU cell: gates, no residual adds."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.t, self.zr, self.new, self.hh = (
            nn.Linear(D, D),
            nn.Linear(D, D),
            nn.Linear(2 * D, 2 * D),
            nn.Linear(D, D),
            nn.Linear(D, D),
        )

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        t = torch.sigmoid(self.t(x))
        x = t * torch.tanh(self.h(x)) + (1 - t) * x
        z, r = torch.sigmoid(self.zr(torch.cat((x, state), -1))).chunk(2, -1)
        return (1 - z) * torch.tanh(self.new(x) + r * self.hh(state)) + z * state


class Latents(nn.Module):
    """Learned queries read a sequence by cross-attention, then attend among themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.cross, self.self_attn, self.mlp = (
            nn.Parameter(torch.randn(1, 3, D)),
            Attention(),
            Attention(),
            mlp(),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q = self.queries.expand(x.shape[0], -1, -1)
        q = q + self.cross(self.norms[0](q), self.norms[1](x))
        q = q + self.self_attn(self.norms[2](q))
        return q + self.mlp(self.norms[3](q))


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls, self.pos = (
            nn.Conv2d(3, D, 8, 8),
            nn.Parameter(torch.zeros(1, 1, D)),
            nn.Parameter(torch.randn(1, 17, D)),
        )
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1) + self.pos
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


class LowRank(nn.Module):
    """A linear layer beside its low-rank update: a sum of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.a, self.b, self.cubic = nn.Linear(D, D), nn.Linear(D, 2), nn.Linear(2, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cubic(self.w(x) + self.b(self.a(x)))
        return 0.5 * y * (1 + torch.tanh(0.8 * (y + 0.044715 * y**3)))


class Coupling(nn.Module):
    """A reversible block: ``y1 = x1 + f(x2)``, ``y2 = x2 + g(y1)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f, self.g = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(2)
        )

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


class Reversible(nn.Module):
    """Two streams of coupled blocks, from the halves of a tensor or twice the same one."""

    def __init__(self, halves: bool) -> None:
        super().__init__()
        self.halves, self.stem, width = halves, nn.Linear(D, D), D // 2 if halves else D
        self.blocks = nn.ModuleList(Coupling(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        x1, x2 = h.chunk(2, -1) if self.halves else (h, h)
        for block in self.blocks:
            x1, x2 = block(x1, x2)
        return torch.cat((x1, x2), -1)


class TwoKinds(nn.Module):
    """Tokens of two kinds share the attention and have an MLP each, added in place to the rows of their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.attn = nn.LayerNorm(D), Attention()
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(2))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D)) for _ in range(2))

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        x = x + self.attn(self.n1(x))
        for i, rows in enumerate((kind, ~kind)):
            x[rows] += self.mlps[i](self.norms[i](x[rows]))
        return x


class KindStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(D, D), nn.ModuleList(TwoKinds() for _ in range(2))

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, kind)
        return x


class TorchTransformer(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.net = nn.Transformer(D, 4, 2, 2, 32, batch_first=True, norm_first=norm_first)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        return self.net(src, tgt)
