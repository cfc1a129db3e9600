"""Mixers on streams whose attention is over windows, of two streams together, or of a class token."""

from __future__ import annotations

import pytest
import torch
from hosts.made import randomise
from torch import Tensor, nn
from torch.nn import functional as F

import resfx
from resfx.errors import NoSitesError

D, HEADS = 8, 2


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Attend(nn.Module):
    """Attention of ``(batch, positions, d)``; with ``talking``, scores and weights are mixed over heads."""

    def __init__(self, talking: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D) for _ in range(4))
        self.before, self.after = (nn.Linear(HEADS, HEADS) if talking else None for _ in range(2))

    def forward(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        read = x if others is None else torch.cat([x, others], 1)
        q, k, v = heads(self.q(x)), heads(self.k(read)), heads(self.v(read))
        if self.before is None or self.after is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = self.before((q @ k.transpose(-2, -1) / 2).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            mixed = self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v
        return self.o(mixed.transpose(1, 2).flatten(2))


class Windowed(nn.Module):
    """Swin: ``(batch, height, width, d)`` in windows of 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(D), Attend()

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, d = x.shape
        parts = self.norm(x).view(n, h // 2, 2, w // 2, 2, d).transpose(2, 3).reshape(-1, 4, d)
        return x + self.attend(parts).view(n, h // 2, w // 2, 2, 2, d).transpose(2, 3).reshape(n, h, w, d)


class Joint(nn.Module):
    """SD3: an image and a text attend together, each with projections of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.norm, self.other = Attend(), Attend(), nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.norm(x), self.other(y)
        pairs = ((self.image.q, self.text.q), (self.image.k, self.text.k), (self.image.v, self.text.v))
        q, k, v = (heads(torch.cat([p(a), r(b)], 1)) for p, r in pairs)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        first, last = mixed.split([x.shape[1], y.shape[1]], 1)
        return x + self.image.o(first), y + self.text.o(last)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Joint() for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks:
            x, y = block(x, y)
        return torch.cat([x, y], 1)


class ClassToken(nn.Module):
    """CaiT: patches attend with talking heads; then a class token reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(4))
        self.patches = nn.ModuleList(Attend(talking=True) for _ in range(2))
        self.tokens = nn.ModuleList(Attend() for _ in range(2))
        self.token = nn.Parameter(torch.randn(1, 1, D))

    def forward(self, x: Tensor) -> Tensor:
        for norm, attend in zip(self.norms[:2], self.patches, strict=True):
            x = x + attend(norm(x))
        token = self.token.expand(x.shape[0], -1, -1)
        for norm, attend in zip(self.norms[2:], self.tokens, strict=True):
            token = token + attend(norm(token), x)
        return token


def made(model: nn.Module, method: object, *args: Tensor) -> nn.Module:
    """Rewritten, exact, and moved off its start."""
    new = resfx.rewrite(model, method, args=args)
    assert torch.equal(new(*args), model(*args))
    randomise(new, 0.3)
    assert (new(*args) - model(*args)).abs().max() > 1e-4
    return new


def test_windows_leave_the_stream_a_sequence_row_by_row():
    torch.manual_seed(0)
    model, x = nn.Sequential(Windowed(), Windowed()).double(), torch.randn(3, 4, 6, D, dtype=torch.float64)
    new = made(model, resfx.ShortSWA(window=3), x)
    want = x
    for block in range(2):
        mixer = new.get_submodule(f"resfx.short_swa.{block}.swa_0")
        want = model[block](want + mixer(want.flatten(1, 2)).view_as(want))
    torch.testing.assert_close(new(x), want, rtol=1e-12, atol=1e-12)
    with pytest.raises(NoSitesError, match="attention over windows"):
        resfx.rewrite(model, "short_conv", args=(x,))
    with pytest.raises(NoSitesError, match="attention over windows"):
        resfx.rewrite(model, "value_residual", args=(x,))


def test_streams_that_attend_together_are_mixed_each_along_its_own_positions():
    torch.manual_seed(0)
    model = Two().double()
    x, y = torch.randn(3, 6, D, dtype=torch.float64), torch.randn(3, 5, D, dtype=torch.float64)
    new = made(model, resfx.ShortConv(on="kv"), x, y)
    bank = "resfx.short_conv.blocks"
    found = {n.removeprefix(f"{bank}.") for n, _ in new.named_modules() if n.count(".") == 4}
    assert found == {f"{i}.{p}_{j}" for i in range(2) for p in "kv" for j in range(2)}
    hooks = [
        getattr(part, p).register_forward_hook(lambda m, a, out, n=f"{bank}.{i}.{p}_{j}": new.get_submodule(n)(out))
        for i, block in enumerate(model.blocks) for j, part in enumerate((block.image, block.text)) for p in "kv"
    ]  # fmt: skip
    want = model(x, y)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(new(x, y), want, rtol=1e-12, atol=1e-12)


def test_a_class_token_is_no_sequence_and_talking_heads_are_attention():
    torch.manual_seed(0)
    model, x = ClassToken(), torch.randn(3, 6, D)
    new = made(model, "short_swa", x)
    assert {n.split(".")[2] for n in new.new_parameters()} == {"swa_0", "swa_1"}
    reasons = [s.reason for s in new.report.skips if "class token" in s.reason]
    assert reasons == ["a class token's attention: its stream is one position, and no sequence"] * 2
    routed = made(model, "value_residual", x)
    assert {n.split(".")[2] for n in routed.new_parameters()} == {"v_1"}
