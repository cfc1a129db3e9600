"""Arguments that transformers renamed: under either name a call is the same call, and files keep their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.utils.deprecation import deprecate_kwarg

import resfx


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 8)

    @deprecate_kwarg("mask", version="99.0", new_name="gate")
    def forward(self, x, gate=None):
        f = self.net(x)
        return x + (f if gate is None else f * gate)


@pytest.fixture
def call():
    return {"x": torch.randn(2, 8), "gate": torch.rand(2, 8)}


def older(call):
    return {"x": call["x"], "mask": call["gate"]}


def test_under_either_name_a_call_is_the_same_call(call):
    model = Gated()
    new = resfx.rewrite(model, "ddl", kwargs=call)
    with pytest.warns(FutureWarning, match="Use `gate` instead"):
        assert torch.equal(new(**older(call)), model(**call))
    assert len(new.variants) == 1
    with pytest.warns(FutureWarning, match="Use `gate` instead"):
        other = resfx.rewrite(model, "ddl", kwargs=older(call))
    assert torch.equal(other(**call), model(**call))
    assert len(other.variants) == 1


def test_compiled_code_takes_either_name(call):
    new = resfx.rewrite(Gated(), "ddl", kwargs=call)
    compiled = torch.compile(new, backend="eager", fullgraph=True)
    assert torch.equal(compiled(**older(call)), new(**call))


def test_files_keep_the_older_name(call, tmp_path):
    new = resfx.rewrite(Gated(), "ddl", kwargs=call)
    made = resfx.export.to_onnx(new, tmp_path / "m.onnx", kwargs=call, check=False)
    assert set(made.inputs) == {"x", "mask"}
