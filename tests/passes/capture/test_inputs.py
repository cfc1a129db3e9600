"""The forms in which example inputs may be given: taken where they are plain, named where they are not."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple

import numpy as np
import pytest
import torch
from hosts.small import Net, batch, net

import resfx
from resfx.errors import CaptureError, InputError, ModelError
from resfx.passes.capture.inputs import example_of

X = torch.ones(2, 3)


class Tokens(UserDict):
    """What a tokenizer returns: a mapping, but no dict."""


@pytest.mark.parametrize(("args", "kwargs", "want"), [
    (X, None, ((X,), {})), ([X, 1], None, ((X, 1), {})), ((X,), {"y": 1}, ((X,), {"y": 1})),
    (None, Tokens(x=X), ((), {"x": X})), (None, OrderedDict(x=X), ((), {"x": X})), ((), None, ((), {})),
])  # fmt: skip
def test_plain_forms_are_taken(args, kwargs, want):
    got = example_of(args, kwargs)
    assert got is not None and type(got[0]) is tuple and type(got[1]) is dict
    assert len(got[0]) == len(want[0]) and all(a is b for a, b in zip(got[0], want[0], strict=True))
    assert got[1].keys() == want[1].keys() and all(got[1][k] is v for k, v in want[1].items())


def test_none_is_none_and_an_array_is_one_argument():
    array = np.ones(3)
    assert example_of() is None and example_of(array)[0][0] is array


@pytest.mark.parametrize(("args", "kwargs", "words"), [
    ({"x": X}, None, r"tuple[\s\S]*a dict with the keys x[\s\S]*kwargs=inputs"),
    (Tokens(x=X), None, r"a Tokens with the keys x[\s\S]*kwargs=inputs"),
    (namedtuple("Pair", "a b")(X, X), None, r"a Pair[\s\S]*args=\(value,\)"), ("a text", None, "tokenize"),
    (3, None, "a int"), (None, X, r"kwargs must be a dict[\s\S]*a Tensor"), (None, [X], "a list"),
    (None, {1: X}, "the key 1"),
])  # fmt: skip
def test_other_forms_are_named(args, kwargs, words):
    with pytest.raises(InputError, match=words):
        example_of(args, kwargs)


def test_every_entry_takes_one_tensor_and_refuses_a_dict(tmp_path):
    model, x = net(), batch()
    new = resfx.rewrite(model, "ddl", x)
    resfx.save(new, tmp_path / "s")
    entries = (
        lambda args: resfx.scan(model, args),
        lambda args: resfx.rewrite(model, "ddl", args, check=False),
        lambda args: resfx.load(tmp_path / "s", model, args),
        lambda args: resfx.compare(
            model, new, args, backends=("eager",), modes=("forward",), repeats=1, progress=False
        ),
        lambda args: resfx.export.to_onnx(new, tmp_path / "m.onnx", args, check=False),
    )
    for entry in entries:
        entry(x)
        with pytest.raises(InputError, match="must be a tuple"):
            entry({"x": x})
        with pytest.raises(ModelError, match="Net itself raises"):
            entry(batch(width=5))
    assert isinstance(ModelError("a"), CaptureError)


def test_tensors_of_inference_mode_and_a_rewrite_inside_it(tmp_path):
    model = net()
    with torch.inference_mode():
        x = batch() + 0
        new = resfx.rewrite(model, "ddl", x)
        assert torch.equal(new(x), model(x)) and torch.equal(new(x[:1]), model(x[:1]))
        made = resfx.export.to_onnx(new, tmp_path / "m.onnx", x, check="onnxruntime")
        assert made.differences["onnxruntime"] < 1e-5
        rows = resfx.compare(model, new, x, backends=["eager"], repeats=1, progress=False).rows
        assert [row.reason for row in rows] == ["", ""]
    assert not any(p.is_inference() for p in new.parameters())
    new(batch()).sum().backward()
    assert torch.equal(resfx.rewrite(model, "ddl", x)(batch()), model(batch()))
    with torch.inference_mode():
        made = Net()
    with pytest.raises(CaptureError, match=r"inp\.weight was made under torch\.inference_mode"):
        resfx.scan(made, batch())


def test_an_example_that_was_computed_is_taken_as_it_is():
    model, x = net(), batch().requires_grad_() * 2
    new = resfx.rewrite(model, "ddl", args=(x,))
    assert torch.equal(new(x), model(x)) and x.grad_fn is not None


@pytest.mark.parametrize("call", [
    lambda new, folder: resfx.save(new, None), lambda new, folder: resfx.load(None, net()),
    lambda new, folder: resfx.export.to_onnx("model.onnx", new),
    lambda new, folder: resfx.load(folder, net(), custom=[1]), lambda new, folder: resfx.split(new, ["blocks.1"]),
    lambda new, folder: resfx.checkpoint_blocks(new, every="2"),
])  # fmt: skip
def test_what_is_no_path_and_no_number_is_named(call, tmp_path):
    new = resfx.rewrite(net(), "ddl", args=(batch(),))
    resfx.save(new, tmp_path / "save")
    with pytest.raises((resfx.errors.ResfxError, ValueError), match=r"path|custom|stages|whole number"):
        call(new, tmp_path / "save")


def test_a_module_whose_parameters_have_no_shape_yet():
    model = net()
    model.out = torch.nn.LazyLinear(8)
    with pytest.raises(resfx.errors.CaptureError, match=r"out\.weight has no shape"):
        resfx.rewrite(model, "ddl", args=(batch(),))
