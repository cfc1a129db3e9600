"""Random models with known residual adds, in every spelling: exactly those are found, and DDL starts exactly."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import resfx

D = 8
FORMS = {"identity": "identity", "scaled": "scaled", "projection": "projection"}


@dataclass(frozen=True)
class Step:
    """One residual add, or one thing that is none."""

    kind: str  # identity, scaled, projection, parallel; or a decoy
    branch: str = "mlp"
    swapped: bool = False
    spelling: str = "plus"  # plus, inplace, method, torch.add, alpha
    dressed: str = ""  # view, cast, permute: what the operands pass through on the way to the add
    again: bool = False  # the same module runs twice


DECOYS = ("bias", "branches", "gate", "polynomial", "dead", "table", "cat", "pieces")
steps = st.one_of(
    st.builds(
        Step, kind=st.sampled_from(["identity", "identity", "scaled", "projection", "parallel"]),
        branch=st.sampled_from(["mlp", "linear", "attention", "norm", "conv"]), swapped=st.booleans(),
        spelling=st.sampled_from(["plus", "inplace", "method", "add", "alpha"]),
        dressed=st.sampled_from(["", "", "view", "cast", "permute", "slice"]), again=st.booleans(),
    ),
    st.builds(Step, kind=st.sampled_from(DECOYS)),
)  # fmt: skip


class Branch(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(D)
        self.a, self.b, self.c = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.conv = nn.Conv1d(D, D, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return self.a(x)
        if self.kind == "norm":
            return torch.tanh(self.norm(x))
        if self.kind == "conv":
            return F.silu(self.conv(self.norm(x).transpose(1, 2))).transpose(1, 2)
        if self.kind == "attention":
            h = self.norm(x)
            return torch.softmax(self.a(h) @ self.b(h).transpose(1, 2), -1) @ self.c(h)
        return self.b(F.gelu(self.a(self.norm(x))))


class Residual(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step, self.f, self.g, self.proj = step, Branch(step.branch), Branch("mlp"), nn.Linear(D, D, bias=False)

    def dress(self, x: Tensor) -> Tensor:
        match self.step.dressed:
            case "view":
                return x.reshape(-1, D).view(x.shape)
            case "cast":
                return x.to(torch.float64).to(x.dtype)
            case "permute":
                return x.permute(1, 0, 2).contiguous().permute(1, 0, 2)
            case "slice":
                return x[:, :]
        return x

    def add(self, x: Tensor, f: Tensor) -> Tensor:
        left, right = (f, x) if self.step.swapped else (x, f)
        match self.step.spelling:
            case "inplace":
                out = left.clone()
                out += right
                return out
            case "method":
                return left.add(right)
            case "add":
                return torch.add(left, right)
            case "alpha":
                return torch.add(left, right, alpha=0.5)
        return left + right

    def forward(self, x: Tensor) -> Tensor:
        match self.step.kind:
            case "scaled":
                return self.add(0.5 * self.dress(x), self.f(x))
            case "projection":
                return self.add(self.dress(self.proj(x)), self.g(self.f(x)))
            case "parallel":
                return self.add(x, self.f(x)) + self.g(x)
        return self.add(self.dress(x), self.dress(self.f(x)))


class Decoy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b = kind, nn.Linear(D, D), nn.Linear(D, D)
        self.table, self.wide = nn.Parameter(torch.randn(1, 5, D)), nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "bias":
                return x + self.table
            case "table":
                return x + self.table.expand_as(x)
            case "branches":
                return self.a(x) + self.b(x)
            case "gate":
                z = torch.sigmoid(self.a(x))
                return z * torch.tanh(x) + (1 - z) * x
            case "polynomial":
                return torch.tanh(0.8 * (x + 0.04 * x**3))
            case "cat":
                return self.wide(torch.cat((x, torch.relu(self.a(x))), -1))
            case "pieces":
                left, right = self.wide(torch.cat((x, x), -1)).repeat(1, 1, 2).chunk(2, -1)
                return self.b(left) + right
        unused = x + self.a(x)
        return x + 0 * unused.shape[0]


class Model(nn.Module):
    def __init__(self, plan: list[Step]) -> None:
        super().__init__()
        self.plan, self.stem, self.head = plan, nn.Linear(D, D), nn.Linear(D, 3)
        self.parts = nn.ModuleList(Residual(s) if s.kind not in DECOYS else Decoy(s.kind) for s in plan)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step, part in zip(self.plan, self.parts, strict=True):
            x = part(x)
            if step.again:
                x = part(x)
        return self.head(x)


def _want(plan: list[Step]) -> list[str]:
    forms: list[str] = []
    for step in plan:
        if step.kind in DECOYS:
            continue
        one = {"parallel": ["identity", "parallel"]}.get(step.kind, [step.kind])
        forms += one * (2 if step.again else 1)
    return forms


def _run(plan: list[Step], source: str) -> None:
    torch.manual_seed(0)
    model = Model(plan).eval()
    x = torch.randn(2, 5, D)
    if source == "export":
        given, args = model, (x,)
    else:
        given, args = torch.fx.symbolic_trace(model), ((x,) if source == "fx with inputs" else None)
    report = resfx.scan(given, args)
    assert [s.form for s in report.sites] == _want(plan), [(s.name, s.form) for s in report.sites]
    known = [s for s in report.sites if s.width is not None]
    assert source == "fx" or known == report.sites  # a graph without shapes may not tell its widths
    if known:
        new = resfx.rewrite(given, "ddl", args, check=False)
        assert len(new.report.changed) == len(known)
        assert torch.equal(new(x), model(x))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plan=st.lists(steps, min_size=1, max_size=4))
def test_exported(plan: list[Step]) -> None:
    _run(plan, "export")


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plan=st.lists(steps, min_size=1, max_size=5), source=st.sampled_from(["fx with inputs", "fx"]))
def test_traced(plan: list[Step], source: str) -> None:
    _run(plan, source)


@pytest.mark.zoo
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=st.lists(steps, min_size=1, max_size=8),
       source=st.sampled_from(["export", "fx with inputs", "fx with inputs", "fx"]))  # fmt: skip
def test_many(plan: list[Step], source: str) -> None:
    _run(plan, source)
