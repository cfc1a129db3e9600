"""Hand-written convolutional networks: blocks of ResNets, long skips, pyramids, dense and dilated stacks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(a: int, b: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Without a bias, padded to keep the size."""
    return nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """torchvision's: ``relu(bn(conv(relu(bn(conv x)))) + downsample(x))``, added in place."""

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            conv(a, b, 3, stride),
            nn.BatchNorm2d(b),
            conv(b, b),
            nn.BatchNorm2d(b),
        )
        self.relu = nn.ReLU(inplace=True)
        change = a != b or stride > 1
        self.downsample = nn.Sequential(conv(a, b, 1, stride), nn.BatchNorm2d(b)) if change else None

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
        self.body = nn.Sequential(conv(a, m, 1), nn.BatchNorm2d(m), nn.ReLU(), conv(m, m, 3, stride, groups),
                                  nn.BatchNorm2d(m), nn.ReLU(), conv(m, b, 1), nn.BatchNorm2d(b))  # fmt: skip
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(b, 4, 1), nn.ReLU(), nn.Conv2d(4, b, 1), nn.Sigmoid()
        )
        self.downsample = conv(a, b, 1, stride) if a != b or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out = out * self.se(out)
        return F.relu((x if self.downsample is None else self.downsample(x)) + out)


class PreActBlock(nn.Module):
    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2 = (
            nn.BatchNorm2d(a),
            conv(a, b, 3, stride),
            nn.BatchNorm2d(b),
            conv(b, b),
        )
        self.shortcut = conv(a, b, 1, stride) if a != b or stride > 1 else None

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
        self.conv, self.bn, self.blocks = conv(3, 16, 3, 2), nn.BatchNorm2d(16), nn.Sequential(*blocks)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv(x)), inplace=True), 3, 2, 1)
        return self.fc(self.blocks(x).mean((2, 3)))


class UNet(nn.Module):
    """Long skips by concatenation (``cat``) or by addition around the deeper levels (``add``)."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.join, self.first, self.down, self.deep = join, conv(3, 16), BasicBlock(16, 32, 2), BasicBlock(32, 32)
        self.up, self.last = nn.ConvTranspose2d(32, 16, 2, 2), conv(32 if join == "cat" else 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        top = F.relu(self.first(x))
        low = self.up(self.deep(self.down(top)))
        return self.last(torch.cat((top, low), 1) if self.join == "cat" else top + low)


class Pyramid(nn.Module):
    """A feature pyramid over two stages: the lateral sums are no residual adds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 16), BasicBlock(16, 16), BasicBlock(16, 32, 2)
        self.l1, self.l2, self.out = conv(16, 8, 1), conv(32, 8, 1), conv(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.one(self.stem(x))
        two = self.two(one)
        top = self.l2(two)
        return self.out(self.l1(one) + F.interpolate(top, scale_factor=2.0)), top


class Group(nn.Module):
    """Super-resolution: convolution blocks inside a group, groups inside the whole (residual in residual)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        inner = [Group(depth - 1), Group(depth - 1)] if depth else [conv(16, 16), nn.ReLU(), conv(16, 16)]
        self.body = nn.Sequential(*inner, conv(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.body(x)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(3 + 8 * i, 8) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.cat((x, F.relu(conv(x))), 1)
        return x


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
