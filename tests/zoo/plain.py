"""Models as people write them by hand: every form of shortcut, and sums that are no shortcuts.

``MODELS`` maps a name to a function that returns a model and the keyword arguments of one call; ``TABLE`` says how
many residual adds each has, from the classes below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inputs import noise, tokens

D = 16
MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {}


def _conv(a: int, b: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """torchvision's: ``relu(bn(conv(relu(bn(conv x)))) + downsample(x))``, added in place."""

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            _conv(a, b, 3, stride),
            nn.BatchNorm2d(b),
            _conv(b, b),
            nn.BatchNorm2d(b),
        )
        self.relu = nn.ReLU(inplace=True)
        change = a != b or stride > 1
        self.downsample = nn.Sequential(_conv(a, b, 1, stride), nn.BatchNorm2d(b)) if change else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """torchvision's bottleneck, with squeeze and excitation before the add."""

    def __init__(self, a: int, b: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        m = b // 2
        self.body = nn.Sequential(_conv(a, m, 1), nn.BatchNorm2d(m), nn.ReLU(), _conv(m, m, 3, stride, groups),
                                  nn.BatchNorm2d(m), nn.ReLU(), _conv(m, b, 1), nn.BatchNorm2d(b))  # fmt: skip
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(b, 4, 1), nn.ReLU(), nn.Conv2d(4, b, 1), nn.Sigmoid()
        )
        self.downsample = _conv(a, b, 1, stride) if a != b or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out = out * self.se(out)
        return F.relu((x if self.downsample is None else self.downsample(x)) + out)


class PreActBlock(nn.Module):
    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2 = (
            nn.BatchNorm2d(a),
            _conv(a, b, 3, stride),
            nn.BatchNorm2d(b),
            _conv(b, b),
        )
        self.shortcut = _conv(a, b, 1, stride) if a != b or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if self.shortcut is not None else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class AveragedBlock(PreActBlock):
    """A shortcut that only resamples: average pooling and zero channels (option A of the first ResNets)."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b, 2)
        self.shortcut, self.extra = None, b - a

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return out + F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, self.extra))


class Stem(nn.Module):
    """Convolution, max pooling, blocks, pooling, classifier."""

    def __init__(self, *blocks: nn.Module, width: int = 64) -> None:
        super().__init__()
        self.conv, self.bn, self.blocks = _conv(3, 16, 3, 2), nn.BatchNorm2d(16), nn.Sequential(*blocks)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv(x)), inplace=True), 3, 2, 1)
        return self.fc(self.blocks(x).mean((2, 3)))


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


def _mlp(d: int = D) -> nn.Sequential:
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
        self.style, self.attn, self.mlp, self.n1, self.n2 = style, Attention(bias=style == "bias"), _mlp(), Rms(), Rms()
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


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer("adaln") for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = torch.cat((t.sin(), t.cos()), -1)
        for layer in self.layers:
            x = layer(x, c)
        return x


class Experts(nn.Module):
    """A shared expert plus gated experts: sums of branches, no shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.shared, self.experts = nn.Linear(D, 3), _mlp(), nn.ModuleList(_mlp() for _ in range(3))

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
        self.f1, self.f2, self.attn = _mlp(), _mlp(), Attention()
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


class Windows(nn.Module):
    """Shifted windows: the branch rolls, cuts, attends and puts back."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.attn, self.mlp, self.n1, self.n2 = shift, Attention(), _mlp(), nn.LayerNorm(D), nn.LayerNorm(D)

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


class UNet(nn.Module):
    """Long skips by concatenation (``cat``) or by addition around the deeper levels (``add``)."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.join, self.first, self.down, self.deep = join, _conv(3, 16), BasicBlock(16, 32, 2), BasicBlock(32, 32)
        self.up, self.last = nn.ConvTranspose2d(32, 16, 2, 2), _conv(32 if join == "cat" else 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        top = F.relu(self.first(x))
        low = self.up(self.deep(self.down(top)))
        return self.last(torch.cat((top, low), 1) if self.join == "cat" else top + low)


class Pyramid(nn.Module):
    """A feature pyramid over two stages: the lateral sums are no residual adds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = _conv(3, 16), BasicBlock(16, 16), BasicBlock(16, 32, 2)
        self.l1, self.l2, self.out = _conv(16, 8, 1), _conv(32, 8, 1), _conv(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.one(self.stem(x))
        two = self.two(one)
        top = self.l2(two)
        return self.out(self.l1(one) + F.interpolate(top, scale_factor=2.0)), top


class Group(nn.Module):
    """Super-resolution: convolution blocks inside a group, groups inside the whole (residual in residual)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        inner = [Group(depth - 1), Group(depth - 1)] if depth else [_conv(16, 16), nn.ReLU(), _conv(16, 16)]
        self.body = nn.Sequential(*inner, _conv(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.body(x)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(3 + 8 * i, 8) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.cat((x, F.relu(conv(x))), 1)
        return x


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


class Temporal(nn.Module):
    """A temporal convolution net: dilated causal convolutions, a 1x1 shortcut where the width changes."""

    def __init__(self, a: int, b: int, dilation: int) -> None:
        super().__init__()
        self.pad, self.c1 = 2 * dilation, nn.Conv1d(a, b, 3, dilation=dilation)
        self.c2, self.downsample = nn.Conv1d(b, b, 3, dilation=dilation), nn.Conv1d(a, b, 1) if a != b else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.c2(F.pad(F.relu(self.c1(F.pad(x, (self.pad, 0)))), (self.pad, 0))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class WaveNet(nn.Module):
    """Residual and skip outputs: the skips are summed across layers, which is no residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(nn.Conv1d(8, 16, 3, padding=2**i, dilation=2**i) for i in range(3))
        self.residual, self.skips = (nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for dilated, residual, skip in zip(self.dilated, self.residual, self.skips, strict=True):
            a, b = dilated(x).chunk(2, 1)
            h = torch.tanh(a) * torch.sigmoid(b)
            total = total + skip(h)
            x = x + residual(h)
        return F.relu(total) + x.mean((1, 2), keepdim=True)


class Latents(nn.Module):
    """Learned queries read a sequence by cross-attention, then attend among themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.cross, self.self_attn, self.mlp = (
            nn.Parameter(torch.randn(1, 3, D)),
            Attention(),
            Attention(),
            _mlp(),
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


class Decomposed(Layer):
    """Averages over a window are taken off the state and summed: the sum of averages is no residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(D, D)

    def average(self, x: Tensor) -> Tensor:
        x = torch.cat((x[:, :1], x, x[:, -1:]), 1)
        return F.avg_pool1d(x.transpose(1, 2), 3, 1).transpose(1, 2)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.n1(x))
        slow = self.average(x)
        x = x - slow
        x = x + self.mlp(self.n2(x))
        slower = self.average(x)
        return (x - slower) * torch.tanh(self.project(slow + slower))


class TorchTransformer(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.net = nn.Transformer(D, 4, 2, 2, 32, batch_first=True, norm_first=norm_first)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        return self.net(src, tgt)


def _add(name: str, make: Callable[[], nn.Module], **call: Any) -> None:
    def build() -> tuple[nn.Module, dict[str, Any]]:
        torch.manual_seed(0)
        return make().eval(), call

    MODELS[name] = build


_image, _ids = {"x": noise(2, 3, 32, 32)}, {"ids": tokens(2, 8)}
_add("ResNet", lambda: Stem(BasicBlock(16, 16), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2)), **_image)
_add("SEResNeXt", lambda: Stem(Bottleneck(16, 32, 1, 4), Bottleneck(32, 32), Bottleneck(32, 64, 2)), **_image)
_add("PreActResNet", lambda: Stem(PreActBlock(16, 16), PreActBlock(16, 64, 2), PreActBlock(64, 64)), **_image)
_add("OptionAResNet", lambda: Stem(PreActBlock(16, 16), AveragedBlock(16, 64)), **_image)
_add("DenseNet", DenseNet, **_image)
_add("UNetCat", lambda: UNet("cat"), **_image)
_add("UNetAdd", lambda: UNet("add"), **_image)
_add("FeaturePyramid", Pyramid, **_image)
_add("ResidualInResidual", lambda: nn.Sequential(_conv(3, 16), Group(1)), input=noise(1, 3, 12, 12))
_add("ShiftedWindows", WindowNet, image=noise(2, 3, 32, 32))
_add("ClassToken", ClassToken, image=noise(2, 3, 32, 32))
for _style in ("pre", "post", "parallel", "joint", "rezero", "deepnorm", "multiplier", "float32", "bias"):
    _add(f"Transformer-{_style}", lambda s=_style: Stack(Layer(s), Layer(s)), **_ids)
_add("SharedLayers", lambda: Stack(Layer(), Layer(), twice=True), **_ids)
_add("MixtureOfExperts", lambda: Stack(ExpertLayer(), ExpertLayer()), **_ids)
_add("Conformer", lambda: Stack(MacaronLayer(), MacaronLayer()), **_ids)
_add("StateSpace", lambda: Stack(ScanLayer(), ScanLayer()), ids=tokens(2, 4))
_add("Adapters", lambda: Stack(Adapted(), Adapted()), **_ids)
_add("Rotary", lambda: Stack(Rotary(), Rotary()), **_ids)
_add("DiffusionTransformer", Conditioned, x=noise(2, 6, D), t=noise(2, D // 2))
_add("GatedCells", Gated, x=noise(3, D), state=noise(3, D))
_add("TemporalConv", lambda: nn.Sequential(Temporal(4, 8, 1), Temporal(8, 8, 2)), input=noise(2, 4, 20))
_add("WaveNet", WaveNet, x=noise(2, 8, 20))
_add("LatentQueries", Latents, x=noise(2, 6, D))
_add("LowRankGelu", LowRank, x=noise(2, 6, D))
_add("Reversible", lambda: Reversible(False), x=noise(2, 4, D))
_add("ReversibleHalves", lambda: Reversible(True), x=noise(2, 4, D))
_add("TwoKinds", KindStack, x=noise(2, 4, D), kind=noise(2, 4) > 0)
_add("Injected", lambda: Stack(Injected(), Injected()), **_ids)
_add("Joined", lambda: Stack(Joined(), Joined()), **_ids)
_add("Decomposed", lambda: Stack(Decomposed(), Decomposed()), **_ids)
_add("TorchTransformerPre", lambda: TorchTransformer(True), src=noise(2, 6, D), tgt=noise(2, 5, D))
_add("TorchTransformerPost", lambda: TorchTransformer(False), src=noise(2, 6, D), tgt=noise(2, 5, D))

TABLE = """
ResNet | BasicBlock[downsample] projection; BasicBlock[!downsample] 1 | 3
SEResNeXt | Bottleneck[downsample] projection; Bottleneck[!downsample] 1 | 2
PreActResNet | PreActBlock[shortcut] projection; PreActBlock[!shortcut] 1 | 2
OptionAResNet | PreActBlock 1; AveragedBlock resampled | 2
DenseNet | none | 0
UNetCat | BasicBlock[downsample] projection; BasicBlock[!downsample] 1 | 1
UNetAdd | BasicBlock[downsample] projection; BasicBlock[!downsample] 1; UNet 1 | 2
FeaturePyramid | BasicBlock[downsample] projection; BasicBlock[!downsample] 1 | 2
ResidualInResidual | Group 1 | 1
ShiftedWindows | Windows 2 | 2
ClassToken | Layer 2
Transformer-pre | Layer 2
Transformer-post | Layer 2
Transformer-parallel | Layer identity parallel
Transformer-joint | Layer 1
Transformer-rezero | Layer 2
Transformer-deepnorm | Layer scaled scaled
Transformer-multiplier | Layer 2
Transformer-float32 | Layer 2
Transformer-bias | Layer 2
SharedLayers | Layer*2 2
MixtureOfExperts | ExpertLayer 2
Conformer | MacaronLayer 4
StateSpace | ScanLayer 1
Adapters | Adapted 4 | ?
Rotary | Rotary 2
DiffusionTransformer | Layer 2
GatedCells | none | 0
TemporalConv | Temporal[downsample] projection; Temporal[!downsample] 1
WaveNet | WaveNet*3 1
LatentQueries | Latents 3
LowRankGelu | none | 0
Reversible | Coupling 2 | 2
ReversibleHalves | Coupling 2 | 2
TwoKinds | TwoKinds 3 | 6
Injected | Injected 2
Joined | Joined identity scaled | ?
Decomposed | Decomposed 2 | ?
TorchTransformerPre | TransformerEncoderLayer 2; TransformerDecoderLayer 3 | 2
TorchTransformerPost | TransformerEncoderLayer 2; TransformerDecoderLayer 3 | 2
"""
