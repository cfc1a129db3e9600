"""Hand-written networks with several streams, with adds inside branches, and with sums that only look residual."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain_conv import conv
from .plain_layers import Attention, D, mlp


class NonLocal(nn.Module):
    """Attention over the positions of a map, added to it."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (
            conv(c, c // 2, 1),
            conv(c, c // 2, 1),
            conv(c, c // 2, 1),
            conv(c // 2, c, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        y = v @ torch.softmax(q.transpose(1, 2) @ k, -1).transpose(1, 2)
        return self.out(y.unflatten(2, x.shape[2:])) + x


class NonLocalBlock(nn.Module):
    """A residual block with a non-local one inside its branch."""

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.attend, self.conv2 = conv(a, b, 3, stride), NonLocal(b), conv(b, b)
        self.shortcut = conv(a, b, 1, stride) if a != b else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.attend(F.relu(self.conv1(x))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class SetAttention(nn.Module):
    """The Set Transformer's block: attention adds to its own query, then a feed-forward layer to that."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (torch.cat(t.chunk(2, -1)) for t in (self.q(x), self.k(y), self.v(y)))
        found = torch.cat((q + torch.softmax(q @ k.transpose(1, 2), -1) @ v).chunk(2), -1)
        return found + F.relu(self.out(found))


class SetTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encode, self.pool = nn.Linear(D, D), SetAttention(), SetAttention()
        self.seeds, self.head = nn.Parameter(torch.randn(1, 2, D)), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.encode(x, x)
        return self.head(self.pool(self.seeds.expand(x.shape[0], -1, -1), x))


class Pooled(nn.Module):
    """A head that pools by attention, without a shortcut, and has an MLP with one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.probe, self.attn = nn.Linear(D, D), nn.Parameter(torch.randn(1, 1, D)), Attention()
        self.norm, self.mlp, self.head = nn.LayerNorm(D), mlp(), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.attn(self.probe.expand(x.shape[0], -1, -1), x)[:, 0]
        return self.head(pooled + self.mlp(self.norm(pooled)))


class GlobalLayer(nn.Module):
    """A few global tokens beside the sequence: each stream reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2, self.n3 = (nn.LayerNorm(D) for _ in range(3))
        self.local, self.all, self.mlp = Attention(), Attention(), mlp()

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat((self.n1(g), self.n2(x)), 1)
        x, g = x + self.local(self.n2(x), both), g + self.all(self.n1(g), both)
        return x + self.mlp(self.n3(x)), g + self.mlp(self.n3(g))


class GlobalTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(GlobalLayer() for _ in range(2)), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        g = x.unflatten(1, (2, -1)).mean(2)
        for layer in self.layers:
            x, g = layer(x, g)
        return self.head(x).sum(1) + self.head(g).sum(1)


class TwoWayLayer(nn.Module):
    """A mask decoder's: tokens and a map attend to one another; the first tokens are added again before each read."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.there, self.back, self.mlp = Attention(), Attention(), Attention(), mlp()
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, first: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.norms[0](tokens + self.own(tokens + first, tokens))
        tokens = self.norms[1](tokens + self.there(tokens + first, image + place))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        return tokens, self.norms[3](image + self.back(image + place, tokens + first))


class TwoWay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.place = nn.ModuleList(TwoWayLayer() for _ in range(2)), nn.Parameter(torch.randn(1, 6, D))

    def forward(self, x: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        tokens = prompt
        for layer in self.layers:
            tokens, x = layer(tokens, x, prompt, self.place)
        return tokens, x


class Place(nn.Module):
    """Positions scaled by what they are added to, for queries and keys alone."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.scale, self.place = nn.MultiheadAttention(D, 4, batch_first=True), mlp(), nn.Embedding(6, D)
        self.norm = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        q = x + self.place.weight * self.scale(x)
        return self.norm(x + self.attn(q, q, x, need_weights=False)[0])


class Quantiser(nn.Module):
    """Two codebooks, each for what the one before leaves over; straight-through gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.codes = mlp(), mlp(), nn.ParameterList(torch.randn(12, D) for _ in range(2))
        self.into, self.out = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        left = x = x + self.first(x)
        total = torch.zeros_like(x)
        for codes in self.codes:
            y = self.into(left)
            picked = F.embedding((y @ codes.t()).argmax(-1), codes)
            code = self.out(y + (picked - y).detach())
            left, total = left - code, total + code
        return total + self.last(total)


class Cell(nn.Module):
    """A searched network's cell: five sums of two operators on two earlier states, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.convs, self.join = nn.ModuleList(conv(8, 8) for _ in range(5)), conv(24, 8, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = self.convs[0](x) + self.convs[1](y)
        b = self.convs[2](y) + self.convs[3](x)
        return self.join(torch.cat((a, b, self.convs[4](y) + y), 1))


class Searched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.cells = conv(3, 8), conv(8, 8), nn.ModuleList(Cell() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        before = self.one(x)
        state = self.two(F.relu(before))
        for cell in self.cells:
            before, state = state, cell(before, F.relu(state))
        return state


class Denoiser(nn.Module):
    """The branch is the noise: it is taken off."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)
