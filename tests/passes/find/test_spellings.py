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


def stack_of(how: Add, kind: type[Block] = Block) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), kind(how), kind(how), nn.Linear(D, 3)).eval()


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
    "index_add": (lambda x, f: x.index_add(1, torch.arange(x.shape[1]), f), reasons.ROWS),
    "scatter_add": (lambda x, f: x.scatter_add(1, torch.zeros(f.shape, dtype=torch.long), f), reasons.ROWS),
    "index_put": (lambda x, f: x.index_put((torch.zeros(2, dtype=torch.long),), f, accumulate=True), reasons.ROWS),
    "lerp by a tensor": (lambda x, f: torch.lerp(x, f, torch.sigmoid(f)), reasons.LERP),
    "a computed factor": (lambda x, f: torch.add(x, f, alpha=1.0 / x.shape[1]), reasons.FACTOR),
}


@pytest.mark.parametrize("how", SITES)
def test_is_a_site_and_starts_exactly(how: str) -> None:
    model, x = stack_of(SITES[how]), torch.randn(2, 5, D)
    report = resfx.scan(model, (x,))
    assert [s.form for s in report.sites] == ["identity"] * 2, report
    new = resfx.rewrite(model, "ddl", (x,))
    assert len(new.report.changed) == 2
    longer = torch.randn(3, 7, D)
    for given in (x, longer):
        assert torch.equal(new(given), model(given))


@pytest.mark.parametrize("how", SKIPS)
def test_is_a_skip_with_a_remedy(how: str) -> None:
    add, reason = SKIPS[how]
    report = resfx.scan(stack_of(add), (torch.randn(2, 5, D),))
    assert [s.reason for s in report.skips] == [reason] * 2, report
    assert not report.sites
    assert all(s.remedy and s.line for s in report.skips)
