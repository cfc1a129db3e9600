"""A representative part of the zoo: found exactly as the source says, and an exact start. All of it: ``make zoo``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo.check import check
from zoo.entry import expected
from zoo.plain import MODELS
from zoo.plain_conv import Stem
from zoo.table import BY_NAME, ENTRIES

import resfx
from resfx.passes.find import reasons

SOME = [
    *MODELS, "CohereForCausalLM", "DogeForCausalLM", "MambaForCausalLM", "NystromformerModel", "T5Model",
    "XLMWithLMHeadModel", "ReformerModelWithLMHead", "resnet18", "hiera_tiny_224",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _kernels():
    before = torch.backends.mha.get_fastpath_enabled()
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def _assert_right(name: str) -> None:
    result = check(BY_NAME[name])
    assert result.captured, result.error
    assert result.found == result.want
    assert result.streams_want in (None, result.streams)
    assert result.exact is not False, result.error


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SOME)
def test_some(name: str) -> None:
    _assert_right(name)


@pytest.mark.zoo
@pytest.mark.parametrize("name", [e.name for e in ENTRIES if e.name not in SOME])
def test_all(name: str) -> None:
    _assert_right(name)


def test_expected_reads_conditions_and_repeats() -> None:
    model, _ = MODELS["ResNet"]()
    assert isinstance(model, Stem)
    assert expected(model, "BasicBlock[downsample] projection; BasicBlock[!downsample] 1") == {
        "projection": 2, "identity": 1}  # fmt: skip
    assert expected(model, "BasicBlock*3 identity parallel") == {"identity": 9, "parallel": 9}
    with pytest.raises(AssertionError, match="no Nothing"):
        expected(model, "Nothing 1")


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Transformer-pre", reasons.EMBEDDINGS), ("Transformer-bias", reasons.SCORES), ("Rotary", reasons.ROTARY),
        ("LowRankGelu", reasons.CUBIC), ("LowRankGelu", reasons.BRANCHES), ("GatedCells", reasons.GATE),
        ("MixtureOfExperts", reasons.BRANCHES), ("FeaturePyramid", reasons.PYRAMID), ("Injected", reasons.OPENS),
        ("PooledQueries", reasons.QUERY),
    ],
)  # fmt: skip
def test_what_is_left_alone_says_why(name: str, reason: str) -> None:
    model, call = MODELS[name]()
    assert reason in {skip.reason for skip in resfx.scan(model, (), call).skips}


def test_a_resampled_shortcut_is_rewritten_when_asked_for() -> None:
    model, call = MODELS["OptionAResNet"]()
    assert len(resfx.rewrite(model, "ddl", (), call).report.changed) == 1
    new = resfx.rewrite(model, "ddl", (), call, forms=("identity", "resampled"))
    assert len(new.report.changed) == 2
    assert torch.equal(new(**call), model(**call))


def test_an_outer_skip_is_rewritten_when_asked_for() -> None:
    model, call = MODELS["ResidualInResidual"]()
    args = (call["input"],)
    assert len(resfx.rewrite(model, "ddl", args).report.changed) == 2
    new = resfx.rewrite(model, "ddl", args, forms=("identity", "outer"))
    assert len(new.report.changed) == 3
    assert torch.equal(new(*args), model(*args))


class Recurrent(nn.Module):
    """A branch that ends in an operator of several outputs."""

    def __init__(self):
        super().__init__()
        self.norm, self.cell = nn.LayerNorm(16), nn.LSTM(16, 16, batch_first=True)

    def forward(self, x):
        return x + self.cell(self.norm(x))[0]


def test_a_recurrent_branch_has_the_width_of_the_stream():
    (site,) = resfx.scan(Recurrent(), (torch.randn(2, 5, 16),)).sites
    assert (site.axis, site.width) == (-1, 16)
