"""A module whose inside no trace can follow, and that adds to no stream, is called as it is; any other is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts.made import randomise
from torch import nn

import resfx
from resfx.errors import CaptureError, VariantError


class Experts(nn.Module):
    """Who computes what is decided by value, in a loop."""

    def __init__(self, width=8, count=3):
        super().__init__()
        self.router = nn.Linear(width, count)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, h):
        flat = h.flatten(0, 1)
        chosen, out = self.router(flat).argmax(-1), torch.zeros_like(flat)
        for i in chosen.unique().tolist():
            rows = (chosen == i).nonzero().squeeze(1)
            out[rows] = self.experts[i](flat[rows])
        return out.view_as(h)


class Numpy(nn.Linear):
    def forward(self, h):
        return torch.from_numpy(h.detach().numpy() * 2) + super().forward(h).detach()


class Transposed(Experts):
    def forward(self, h):
        return super().forward(h).transpose(1, 2), None


class AddsInside(Experts):
    def forward(self, h):
        return h + super().forward(h)


class Writes(Experts):
    def forward(self, h):
        return h.mul_(2) * super().forward(h)


class Shorter(Experts):
    """As many rows as there are values above zero: nobody's size."""

    def forward(self, h):
        super().forward(h)
        return h[:, : int((h > 0).sum()) % 3 + 2]


class Counts(Experts):
    def forward(self, h):
        return super().forward(h), int((h > 0).sum())


class Block(nn.Module):
    def __init__(self, inner, width=8):
        super().__init__()
        self.norm, self.inner, self.out = nn.LayerNorm(width), inner(), nn.Linear(width, width)

    def forward(self, x):
        f = self.inner(self.norm(x))
        if isinstance(f, tuple):
            f = f[0].transpose(1, 2) if f[1] is None else f[0] * f[1]
        return x + self.out(f if f.shape == x.shape else f.mean(1, keepdim=True).expand_as(x))


class Net(nn.Module):
    def __init__(self, inner, blocks=2):
        super().__init__()
        self.blocks = nn.ModuleList(Block(inner) for _ in range(blocks))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def made(inner):
    torch.manual_seed(0)
    return Net(inner).eval(), torch.randn(2, 5, 8)


@pytest.mark.parametrize("inner", [Experts, Transposed, lambda: Numpy(8, 8)])
def test_its_adds_are_found_around_it_and_it_runs_its_own_code(inner):
    model, x = made(inner)
    new = resfx.rewrite(model, "ddl", args=x)
    assert len(new.report.changed) == 2 and "self.inner(" in resfx.of(new).code("blocks.0")
    told = {s.owner: s.reason for s in new.report.skips}
    assert all("whose inside cannot be traced" in told[f"blocks.{i}.inner"] for i in (0, 1))
    for shape in ((2, 5, 8), (3, 9, 8), (4, 2, 8), (1, 6, 8)):
        y = torch.randn(shape)
        assert torch.equal(new(y), model(y)), "other rows, other values: other experts"
    randomise(new)
    assert not torch.equal(new(x), model(x))


def test_gradients_go_through_it():
    model, x = made(Experts)
    new = copy.deepcopy(resfx.rewrite(model, "ddl", args=x)).train()
    model.train()(x).square().sum().backward()
    new(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        grad = new.get_parameter(name).grad
        assert (grad is None) == (parameter.grad is None) and (grad is None or torch.equal(grad, parameter.grad)), name
    assert model.blocks[0].inner.router.weight.grad is None
    assert any(e.weight.grad is not None for e in new.blocks[0].inner.experts)


def test_a_hook_and_a_swap_in_it_act():
    model, x = made(Experts)
    new = resfx.rewrite(model, "ddl", args=x)
    seen = []
    new.blocks[1].inner.experts[0].register_forward_hook(lambda *_: seen.append(1))
    new(torch.randn(4, 50, 8))
    assert seen
    new.blocks[0].inner = nn.Identity()
    model = copy.deepcopy(model)
    model.blocks[0].inner = nn.Identity()
    assert torch.equal(new(x), model(x))


@pytest.mark.parametrize("inner", [AddsInside, Writes, Shorter, Counts])
def test_what_cannot_be_taken_as_it_is_is_refused(inner):
    model, x = made(inner)
    with pytest.raises(CaptureError, match="cannot capture Net"):
        resfx.rewrite(model, "ddl", args=x)


def test_sizes_that_cannot_be_told_apart_are_those_of_the_same_place():
    model, _ = made(Experts)
    new = resfx.rewrite(model, "ddl", args=torch.randn(5, 5, 8))
    x = torch.randn(2, 7, 8)
    assert torch.equal(new(x), model(x))


def test_it_can_be_saved_and_loaded(tmp_path):
    model, x = made(Experts)
    new = resfx.rewrite(model, "ddl", args=x)
    randomise(new)
    resfx.save(new, tmp_path / "s")
    assert torch.equal(resfx.load(tmp_path / "s", model)(x), new(x))


def test_one_graph_of_it_is_refused_by_name(tmp_path):
    model, x = made(Experts)
    new = resfx.rewrite(model, "ddl", args=x)
    with pytest.raises(CaptureError, match=r"as one graph[\s\S]*blocks\.0\.inner cannot be traced"):
        resfx.export.to_onnx(new, tmp_path / "m.onnx")


class Attention(Experts):
    """Its projections are inside what cannot be traced."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, h):
        h = super().forward(h)
        return nn.functional.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))


def test_a_method_that_needs_its_inside_says_so():
    model, x = made(Attention)
    with pytest.raises((VariantError, resfx.errors.NoSitesError)):
        resfx.rewrite(model, "short_conv", args=x)
