"""Adds written otherwise: each is a site that starts exactly, or a skip that says what to write instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import resfx
from resfx.passes.find import reasons

D = 8
Add = Callable[[Tensor, Tensor], Tensor]


class Block(nn.Module):
    def __init__(self, how: Add) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.how = nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.Linear(2 * D, D), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x, self.down(torch.tanh(self.up(self.norm(x)))))


def _gain() -> Tensor:
    return torch.linspace(0.1, 0.9, D)


def _inplace(name: str, *others: float) -> Add:
    def how(x: Tensor, f: Tensor) -> Tensor:
        out = x.clone()
        getattr(out, name)(*(f, *others))
        return out

    return how


def _minus_equals(x: Tensor, f: Tensor) -> Tensor:
    x = x.clone()
    x -= f
    return x


def _zeros(x: Tensor, f: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for term in (x, f):
        total = total + term
    return total


SITES: dict[str, Add] = {
    "sum": lambda x, f: sum([x, f]),  # type: ignore[arg-type, return-value]
    "sum, branch first": lambda x, f: sum([f, x]),  # type: ignore[arg-type, return-value]
    "from zeros": _zeros,
    "minus": lambda x, f: x - f,
    "minus equals": _minus_equals,
    "sub": torch.sub,
    "sub with alpha": lambda x, f: torch.sub(x, f, alpha=0.3),
    "sub with a negative alpha": lambda x, f: torch.sub(x, f, alpha=-1.0),
    "sub_": _inplace("sub_"),
    "rsub": lambda x, f: torch.rsub(f, x),
    "rsub with alpha": lambda x, f: torch.rsub(f, x, alpha=0.3),
    "add with alpha": lambda x, f: torch.add(x, f, alpha=0.3),
    "add_ with alpha": lambda x, f: x.clone().add_(f, alpha=0.3),
    "shortcut with alpha": lambda x, f: torch.add(f, x, alpha=0.3),
    "stack and sum": lambda x, f: torch.stack([x, f]).sum(0),
    "stack and sum, last axis": lambda x, f: torch.sum(torch.stack((f, x), -1), dim=-1),
    "stack and mean": lambda x, f: torch.stack([x, f], 1).mean(1),
    "cat and sum": lambda x, f: torch.cat([x.unsqueeze(0), f.unsqueeze(0)]).sum(0),
    "einsum": lambda x, f: torch.einsum("kbtd->btd", torch.stack([x, f])),
    "einsum with dots": lambda x, f: torch.einsum("...k->...", torch.stack([x, f], -1)),
    "addcmul": lambda x, f: torch.addcmul(x, _gain(), f),
    "addcmul, branch first": lambda x, f: torch.addcmul(x, f, _gain(), value=0.3),
    "addcmul_": lambda x, f: x.clone().addcmul_(f, _gain()),
    "addcdiv": lambda x, f: torch.addcdiv(x, f, _gain(), value=0.3),
    "lerp": lambda x, f: torch.lerp(x, f, 0.3),
    "lerp_": _inplace("lerp_", 0.3),
    "foreach": lambda x, f: torch._foreach_add([x], [f])[0],
    "foreach with alpha": lambda x, f: torch._foreach_add([x], [f], alpha=0.3)[0],
    "foreach sub": lambda x, f: torch._foreach_sub([x], [f])[0],
    "two at once": lambda x, f: torch._foreach_add([f, x], [f, f])[1],
}
SKIPS: dict[str, tuple[Add, str]] = {
    "reversed": (lambda x, f: f - x, reasons.REVERSED),
    "many": (lambda x, f: torch.stack([x, f, torch.tanh(f)]).sum(0), reasons.MANY),
    "weighted": (lambda x, f: torch.einsum("kbtd,k->btd", torch.stack([x, f]), torch.ones(2)), reasons.JOINED),
    "scaled before the sum": (lambda x, f: (torch.stack([x, f], -1) * torch.ones(2)).sum(-1), reasons.JOINED),
    "over several axes": (lambda x, f: torch.stack([x, f])[:, None].sum((0, 1)), reasons.JOINED),
    "last of the partial sums": (lambda x, f: torch.stack([x, f]).cumsum(0)[-1], reasons.JOINED),
    "times ones": (lambda x, f: torch.stack([x, f], -1) @ torch.ones(2), reasons.JOINED),
    "ones times": (lambda x, f: torch.ones(1, 2) @ torch.stack([x, f], -2), reasons.JOINED),
    "index_add": (lambda x, f: x.index_add(1, torch.arange(x.shape[1]), f), reasons.ROWS),
    "scatter_add": (lambda x, f: x.scatter_add(1, torch.zeros(f.shape, dtype=torch.long), f), reasons.ROWS),
    "index_put": (lambda x, f: x.index_put((torch.zeros(2, dtype=torch.long),), f, accumulate=True), reasons.ROWS),
    "lerp by a tensor": (lambda x, f: torch.lerp(x, f, torch.sigmoid(f)), reasons.LERP),
    "a computed factor": (lambda x, f: torch.add(x, f, alpha=1.0 / x.shape[1]), reasons.FACTOR),
}


def chain(hows: dict[str, Add]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), *(Block(how) for how in hows.values()), nn.Linear(D, 3)).eval()


def _at(owner: str, hows: dict[str, Add]) -> str:
    return list(hows)[int(owner) - 1]


def test_each_is_a_site_and_starts_exactly() -> None:
    model, x = chain(SITES), torch.randn(2, 5, D)
    report = resfx.scan(model, (x,))
    assert {_at(s.owner, SITES): s.form for s in report.sites} == dict.fromkeys(SITES, "identity")
    assert len(report.sites) == len(SITES)
    assert len(report.streams) == 1
    new = resfx.rewrite(model, "ddl", (x,))
    assert len(new.report.changed) == len(SITES)
    for given in (x, torch.randn(3, 7, D)):
        assert torch.equal(new(given), model(given))


def test_each_is_a_site_in_a_traced_graph() -> None:
    unread = ("foreach", "two at once", "sub_", "lerp_")  # without shapes; written over, and read by the old name
    hows = {name: how for name, how in SITES.items() if not name.startswith(unread)}
    model, x = chain(hows), torch.randn(2, 5, D)
    traced = torch.fx.symbolic_trace(model)
    sites = resfx.scan(traced, (x,)).sites
    assert [_at(s.owner, hows) for s in sites] == list(hows)
    assert torch.equal(resfx.rewrite(traced, "ddl", (x,), check=False)(x), model(x))


def test_each_that_cannot_be_told_apart_says_what_to_write() -> None:
    hows = {name: how for name, (how, _) in SKIPS.items()}
    report = resfx.scan(chain(hows), (torch.randn(2, 5, D),))
    assert {_at(s.owner, hows): s.reason for s in report.skips} == {name: reason for name, (_, reason) in SKIPS.items()}
    assert not report.sites
    assert all(s.remedy and s.line for s in report.skips)


class Fused(nn.Module):
    """The last product of a branch and its add in one operator; attention's likewise."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.norm, self.up = rank, nn.LayerNorm(D), nn.Linear(D, 2 * D)
        self.down = nn.Parameter(torch.randn(*([2] if rank == 3 else []), 2 * D, D))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(self.norm(x)))
        if self.rank == 2:
            return torch.addmm(x, hidden, self.down, alpha=0.5)
        x = torch.baddbmm(x, hidden, self.down, beta=0.5)
        scores = torch.softmax(x @ x.transpose(1, 2), -1)
        return torch.baddbmm(x, scores, x)


@pytest.mark.parametrize("rank", [2, 3])
def test_an_add_fused_with_a_product(rank: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(D, D), Fused(rank), Fused(rank)).eval(), torch.randn(2, 5, D)[: 3 - (rank == 2)]
    x = x[0] if rank == 2 else x
    report = resfx.scan(model, (x,))
    assert [s.kind for s in report.sites] == (["mlp"] * 2 if rank == 2 else ["mlp", "attention"] * 2), report
    assert all((s.axis, s.width) == (-1, D) for s in report.sites)
    assert torch.equal(resfx.rewrite(model, "ddl", (x,))(x), model(x))


@pytest.mark.parametrize("mode", ["denseformer", "hyper_connections", "mhc"])
def test_other_scopes_act_or_refuse_by_name(mode: str) -> None:
    some = ("sum", "minus", "stack and sum", "cat and sum", "addcmul", "lerp", "two at once")
    model, x = chain({name: SITES[name] for name in some}), torch.randn(2, 5, D)
    new = resfx.rewrite(model, mode, (x,))
    torch.testing.assert_close(new(x), model(x))
    assert all(s.reason and s.remedy for s in new.report.skips)


def test_ordinary_differences_and_interpolations_are_not_worth_a_word() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            x = x - x.mean(-1, keepdim=True)
            return torch.lerp(self.a(x), self.b(x), 0.5) - torch.stack([self.b(x), self.a(x)]).sum(0)

    report = resfx.scan(Net(), (torch.randn(2, 5, D),))
    assert not report.sites
    assert not report.skips
