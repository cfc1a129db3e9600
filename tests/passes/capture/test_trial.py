"""A model that raises by itself: the error is the model's, with the place and what to do; the model is as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hosts.small import Net, batch, net
from torch import nn

import resfx
from resfx.errors import CaptureError, InputError, ModelError
from resfx.passes import source_of


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body = nn.Embedding(10, 8), Net()

    def forward(self, input_ids, attention_mask=None, **options):
        if "fail" in options:
            raise ValueError("told to")
        h = self.body(self.table(input_ids))
        return h if attention_mask is None else h * attention_mask.unsqueeze(-1)


IDS = torch.arange(6).view(2, 3)


@pytest.mark.parametrize(("args", "kwargs", "found", "remedy"), [
    ((IDS.float(),), {}, "indices", "ids.long"), ((IDS + 7,), {}, "index out of range", "vocabulary"),
    ((IDS.tolist(),), {}, "must be Tensor, not list", "torch.tensor"),
    ((IDS,), {"attention_mask": torch.ones(2, 4)}, "size of tensor", "shapes"),
    ((IDS,), {"fail": 1}, "ValueError: told to", "until it runs"),
])  # fmt: skip
def test_what_the_model_raises_is_said_as_it_is(args, kwargs, found, remedy):
    for entry in (resfx.scan, lambda m, a, k: resfx.rewrite(m, "ddl", a, k, check=False)):
        with pytest.raises(ModelError, match="Embedded itself raises on these inputs") as caught:
            entry(net(Embedded), args, kwargs)
        error = caught.value
        assert found in error.found and remedy in error.try_ and "test_trial.py:" in error.found
        assert "tracer" not in str(error) and error.__cause__ is not None


@pytest.mark.parametrize(("value", "remedy"), [
    (batch().double(), "dtype"), (batch(width=5), "shapes"), (batch().to("meta"), "device"), ("text", "torch.tensor"),
])  # fmt: skip
def test_types_widths_and_devices(value, remedy):
    with pytest.raises(ModelError) as caught:
        resfx.scan(net(), (value,))
    assert remedy in caught.value.try_


@pytest.mark.parametrize(("kwargs", "words"), [
    ({"inputs": batch()}, r"no argument 'inputs'; it takes \(x\)[\s\S]*x= instead of inputs="),
    ({"x": batch(), "mask": 1}, "no argument 'mask'"), ({}, "missing a required argument: 'x'"),
])  # fmt: skip
def test_arguments_that_do_not_fit_list_those_that_do(kwargs, words):
    for entry in (resfx.scan, lambda m, kwargs: resfx.rewrite(m, "ddl", kwargs=kwargs)):
        with pytest.raises(InputError, match=words):
            entry(net(), kwargs=kwargs)


class Owning(Net):
    """Its own forward holds an add."""

    def forward(self, x):
        h = self.body(x)
        return h + self.out(h)


@pytest.mark.parametrize("cls", [Net, Owning])
@pytest.mark.parametrize(("args", "kwargs"), [((), {"inputs": 1}), ((batch(),), {"mask": 1}), ((), {}), ((1, 2), {})])
def test_a_later_call_whose_arguments_do_not_fit_raises_what_python_raises(cls, args, kwargs):
    new = resfx.rewrite(net(cls), "ddl", batch())
    said = []
    for model in (net(cls), new):
        with pytest.raises(TypeError) as caught:
            model(*args, **kwargs)
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


def test_a_misspelt_keyword_that_forward_swallows_is_named_where_the_model_fails():
    with pytest.raises(InputError, match="input_ids= instead of input_id="):
        resfx.scan(net(Embedded), kwargs={"input_id": IDS})
    with pytest.raises(ModelError, match="attention_mask= instead of attention_msk="):
        resfx.scan(net(Embedded), (IDS,), {"attention_msk": IDS, "fail": 1})


def test_an_example_without_rows():
    with pytest.raises(InputError, match=r"x has no rows: \(0, 5, 8\)"):
        resfx.rewrite(net(), "ddl", batch(0))


@pytest.mark.parametrize("cls", [Net, Owning])
@pytest.mark.parametrize("value", [batch(width=5), batch().double(), "text"], ids=["width", "type", "text"])
def test_a_later_call_that_the_model_refuses(cls, value):
    model, new = net(cls), resfx.rewrite(net(cls), "ddl", batch())
    before = new.variants
    with pytest.raises((RuntimeError, TypeError)) as own:
        model(value)
    with pytest.raises((RuntimeError, TypeError, ModelError)) as caught:
        new(value)
    if cls is Net:
        assert (type(caught.value), str(caught.value)) == (type(own.value), str(own.value))
    else:
        assert str(own.value).splitlines()[0] in str(caught.value), "generated code was asked for, and says it"
    # A trace takes a wider type where a kernel refuses it: what was made then stays, for calls that raise.
    assert new.variants == before or (cls is Owning and torch.is_tensor(value) and value.dtype == torch.float64)
    assert torch.equal(new(batch()), model(batch()))


class Busy(Net):
    """Everything that a forward pass may leave behind."""

    def __init__(self):
        super().__init__()
        self.norm, self.calls, self.seen, self.kept = nn.BatchNorm1d(5), 0, [], {}
        self.register_buffer("late", None)

    def forward(self, x):
        self.calls += 1
        self.seen.append(x)
        self.kept["x"] = x
        self.late = self.blocks[0].last = x
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        return self.norm(super().forward(x)) * noise


def test_the_trial_leaves_no_trace():
    model = net(Busy).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    source_of(model, batch()).try_out(model, (batch(),), {})
    assert (model.calls, model.seen, model.kept, model.late) == (0, [], {}, None)
    assert not hasattr(model.blocks[0], "last")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(states[0], after[0]) and states[1:] == after[1:]


def test_the_trial_leaves_the_inputs_alone():
    class Writes(Net):
        def forward(self, x):
            return super().forward(x.mul_(2))

    x = batch()
    source_of(net(Writes), x).try_out(net(Writes), (x,), {})
    assert torch.equal(x, batch())


def test_lists_and_dicts_written_into_are_refused():
    class Collects(Net):
        def forward(self, x, out):
            y = super().forward(x)
            out.append(y) if isinstance(out, list) else out.update(y=y)
            return y

    for given in ([], {"a": batch()}):
        with pytest.raises(CaptureError, match="writes into the list or dict given as 'out'"):
            resfx.scan(net(Collects), (batch(), given))


def test_a_branch_on_values_prints_nothing_but_the_error(capfd):
    class Branch(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(CaptureError, match="depends on tensor values"):
        resfx.scan(net(Branch), batch())
    out, err = capfd.readouterr()
    assert out == err == ""
