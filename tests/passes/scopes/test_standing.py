"""An add is the same add in every capture: by where it stands in the source, not by its number."""

from __future__ import annotations

import copy
import importlib.util
import sys

import pytest
import torch
from torch import nn

import resfx
from resfx.errors import SaveError, VariantError
from resfx.passes.find.standing import Sought, standings_of

WIDTH = 8
X = torch.linspace(-1, 1, 3 * WIDTH, dtype=torch.float64).view(1, 3, WIDTH)


class Weighed(nn.Module):
    def __init__(self, place):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=place.dtype))

    def forward(self, x, f, c):
        return x + f + self.w * f


class Weigh(resfx.Method):
    """``x + (1 + w) f``: what a module acts on shows in the output."""

    name = "weigh"

    def build(self, place):
        return Weighed(place)


def part():
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp, self.extra = part(), part(), part()


class Before(Parts):
    def forward(self, x, more: bool = False):
        if more:
            x = x + self.extra(x)
        x = x + self.attn(x)
        return x + self.mlp(x)


class Between(Parts):
    def forward(self, x, more: bool = False):
        x = x + self.attn(x)
        if more:
            x = x + self.extra(x)
        return x + self.mlp(x)


class After(Parts):
    def forward(self, x, more: bool = False):
        x = x + self.attn(x)
        x = x + self.mlp(x)
        return x + self.extra(x) if more else x


class Helped(Parts):
    """All adds on one line of one helper."""

    @staticmethod
    def add(x, f):
        return x + f

    def forward(self, x, more: bool = False):
        if more:
            x = self.add(x, self.extra(x))
        x = self.add(x, self.attn(x))
        return self.add(x, self.mlp(x))


class OneLine(Parts):
    def forward(self, x, more: bool = False):
        for name in ["extra", "attn", "mlp"] if more else ["attn", "mlp"]:
            x = x + getattr(self, name)(x)
        return x


class Twice(Parts):
    """The extra add calls what another calls too: only its line tells them apart."""

    def forward(self, x, more: bool = False):
        if more:
            x = x + self.mlp(x)
        x = x + self.attn(x)
        return x + self.mlp(x)


def weighed(cls, **call):
    torch.manual_seed(0)
    model = cls().double()
    new = resfx.rewrite(model, Weigh(), args=(X,), kwargs=call)
    with torch.no_grad():
        for order, parameter in enumerate(new.new_parameters().values()):
            parameter.fill_(order + 1.0)
    return model, new


def acting_on(model, **factors):
    """A copy whose branches are scaled as if a module of weight ``factor - 1`` acted on each."""
    model = copy.deepcopy(model)
    for name, factor in factors.items():
        model.get_submodule(name).register_forward_hook(lambda m, i, out, factor=factor: out * factor)
    return model


@pytest.mark.parametrize("cls", [Before, Between, After, Helped, OneLine])
def test_one_more_add_leaves_the_others_theirs(cls):
    model, new = weighed(cls)
    want = acting_on(model, attn=2.0, mlp=3.0)
    torch.testing.assert_close(new(X), want(X))
    with pytest.warns(UserWarning, match=r"not there when weigh was applied: they stay as they are \(\(root\):\d\)"):
        got = new(X, more=True)
    torch.testing.assert_close(got, want(X, more=True))


@pytest.mark.parametrize("cls", [Before, Between, After, Helped, OneLine])
def test_one_add_less_is_refused(cls):
    _, new = weighed(cls, more=True)
    with pytest.raises(VariantError, match="not found again"):
        new(X)


def test_lines_tell_adds_apart_that_call_the_same():
    model, new = weighed(Twice)
    with pytest.warns(UserWarning, match="not there"):
        got = new(X, more=True)
    x = X + model.mlp(X)
    x = x + 2 * model.attn(x)
    torch.testing.assert_close(got, x + 3 * model.mlp(x))


class Looped(Parts):
    def forward(self, x, times: int = 2):
        for _ in range(times):
            x = x + self.attn(x)
        return x


def test_a_loop_over_one_module_is_refused_with_another_count():
    model, new = weighed(Looped)
    x = X + 2 * model.attn(X)
    torch.testing.assert_close(new(X), x + 3 * model.attn(x))
    new.train()
    torch.testing.assert_close(new(X), x + 3 * model.attn(x))
    for times in (1, 3):
        with pytest.raises(VariantError, match="not as many"):
            new(X, times=times)


class Switched(Parts):
    """One add whose branch depends on the call, and two adds of which a call has one."""

    def forward(self, x, other: bool = False, apart: bool = False):
        if apart:
            return x + self.extra(x)
        return x + (self.mlp(x) if other else self.attn(x))


def test_one_add_with_another_branch_is_the_same_and_another_add_is_not():
    model, new = weighed(Switched)
    torch.testing.assert_close(new(X, other=True), X + 2 * model.mlp(X))
    with pytest.raises(VariantError, match="not found again"):
        new(X, apart=True)


class Dropped(Parts):
    """A branch that runs one module more in training, as stochastic depth does."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        x = x + (self.drop(self.attn(x)) if self.training else self.attn(x))
        return x + self.mlp(x)


def test_training_finds_what_evaluation_found():
    model, new = weighed(Dropped)
    want = acting_on(model, attn=2.0, mlp=3.0)
    torch.testing.assert_close(new.eval()(X), want(X))
    torch.testing.assert_close(new.train()(X), want(X))


def test_a_read_over_depth_is_refused_where_it_would_get_other_sources():
    class Net(nn.Module):
        def __init__(self, cls):
            super().__init__()
            self.blocks = nn.ModuleList(cls() for _ in range(2))

        def forward(self, x, more: bool = False):
            for block in self.blocks:
                x = block(x, more)
            return x

    torch.manual_seed(0)
    new = resfx.rewrite(Net(Between), resfx.DepthRead(window=None, heads=1, at="input"), args=(X.float(),))
    with (
        pytest.raises(VariantError, match=r"was made for read=0, .*sublayers=2, not for read=0, .*sublayers=3"),
        pytest.warns(UserWarning, match="not there"),
    ):
        new(X.float(), more=True)


SOURCE = """
import torch
from torch import nn


def part():
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp = part(), part()

    def forward(self, x, more: bool = False):
{lines}
        return x
"""
LINES = ["x = x + self.attn(x)", "x = x + self.mlp(x)", "x = x + self.mlp(x)"]


def net_of(path, lines):
    path.write_text(SOURCE.format(lines="\n".join(f"        {line}" for line in lines)))
    spec = importlib.util.spec_from_file_location("changing", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["changing"] = module
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module.Net().double()


def saved(tmp_path):
    """A save whose three adds have the weights 1, 2 and 3."""
    new = resfx.rewrite(net_of(tmp_path / "changing.py", LINES), Weigh(), args=(X,))
    with torch.no_grad():
        for order, parameter in enumerate(new.new_parameters().values()):
            parameter.fill_(order + 1.0)
    resfx.save(new, tmp_path / "save")
    return new


def loaded(tmp_path, lines):
    model = net_of(tmp_path / "changing.py", lines)
    return resfx.load(tmp_path / "save", model, args=(X,), custom={"weigh": Weigh})


@pytest.mark.parametrize(
    "lines",
    [LINES, ["", "# lines were added", *LINES], [LINES[0], "", *LINES[1:]], ["if more:", "    x = x * 2", *LINES],
     ["if more:", f"    {LINES[0]}", *LINES]],
)  # fmt: skip
def test_a_save_loads_where_lines_moved(tmp_path, lines):
    new = saved(tmp_path)
    torch.testing.assert_close(loaded(tmp_path, lines)(X), new(X), rtol=0, atol=0)


def test_a_save_loads_where_other_adds_came(tmp_path):
    saved(tmp_path)
    for before, after in ((["x = x + self.attn[1:](x)"], []), ([], LINES[1:2])):
        again = loaded(tmp_path, [*before, *LINES, *after])
        assert len(again.report.sites) == 4 and len(again.report.changed) == 3
        x = X + again.attn[1:](X) if before else X
        for factor, branch in ((2, again.attn), (3, again.mlp), (4, again.mlp)):
            x = x + factor * branch(x)
        torch.testing.assert_close(again(X), x + again.mlp(x) if after else x)


@pytest.mark.parametrize("lines", [LINES[:2], [LINES[1], *LINES], LINES[1:], [*LINES[:2], "", *LINES[1:]]])
def test_a_save_is_refused_where_it_is_not_sure(tmp_path, lines):
    saved(tmp_path)
    with pytest.raises(SaveError, match="not for sure"):
        loaded(tmp_path, lines)


def test_standings_count_what_is_alike():
    report = resfx.scan(Looped().double(), args=(X,))
    first, second = standings_of(report.sites)
    assert (first.same, second.same, first.on_lines, first.alike) == ((0, 2), (1, 2), 2, (0, 2))
    assert first.calls == ("attn",) and first.name == "(root):0"
    assert len(first.lines) == 1 and first.lines[0].startswith("test_standing.py:")
    assert [Sought(report.sites).find(place) for place in (first, second)] == report.sites
