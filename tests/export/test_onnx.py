"""ONNX export of whole models: what is in the file, and what it computes in two runtimes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hosts import BY_NAME, HOSTS, tokens
from hosts.generation import given_cache
from hosts.made import randomise, rewritten
from hosts.onnx_models import Stack, batch, fused_nodes, plain, run, stack
from torch import nn

import resfx
from resfx.errors import ExportError
from resfx.export import lowering, to_onnx

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def check_host(name: str, tmp_path) -> None:
    host = BY_NAME[name]
    model, new, inputs = rewritten(name)
    randomise(new)
    path = tmp_path / "model.onnx"
    made = to_onnx(new, path)
    nodes = fused_nodes(path)
    assert len(nodes) == made.nodes["resfx"] == host.sites and {n.op_type for n in nodes} == {"DeltaShortcut"}
    bodies = onnx.load(path).functions
    assert {(f.domain, f.name) for f in bodies} == {("resfx", "DeltaShortcut")}
    assert set(made.differences) == {"onnxruntime", "reference"} and max(made.differences.values()) < 1e-5
    assert all(shape[0] == "batch" for shape in made.inputs.values())
    if name == "t5":
        assert made.inputs == {"input_ids": ("batch", "sequence"), "decoder_input_ids": ("batch", "decoder_sequence")}
        assert made.outputs["logits"] == ("batch", "decoder_sequence", 89)
    assert list(made.inputs) == [n for n, v in inputs.items() if isinstance(v, torch.Tensor)]
    for rows in (2, 5):
        for length in (4, 9):
            call = host.inputs(rows, length)
            feeds = {n: v for n, v in call.items() if isinstance(v, torch.Tensor)}
            with torch.no_grad():
                want, before = new(**call), model(**call)
            got = dict(zip(made.outputs, run(path, feeds), strict=True))
            want, before = ((x if isinstance(x, dict) else {"output": x}) for x in (want, before))
            for output, value in got.items():
                torch.testing.assert_close(torch.from_numpy(value), want[output], rtol=1e-4, atol=1e-5)
            first = next(iter(got))
            assert (want[first] - before[first]).abs().max() > 1e-3  # the rewrite acts


DEFAULT = ("vit",)


@pytest.mark.parametrize("name", DEFAULT)
def test_hosts(name, tmp_path):
    check_host(name, tmp_path)


@pytest.mark.matrix
@pytest.mark.parametrize("name", [h.name for h in HOSTS if h.name not in DEFAULT])
def test_all_hosts(name, tmp_path):
    if name != "whisper":  # its time axis is not one that may vary, though the trace leaves it open
        check_host(name, tmp_path)
        return
    with pytest.raises(ExportError, match="cannot lower"):
        to_onnx(rewritten(name)[1], tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_masks_and_losses(tmp_path):
    new = rewritten("gpt2")[1]
    randomise(new)  # the example gives one tensor as ids and as labels: still two inputs
    ids = tokens(2, 7)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "use_cache": False}
    made = to_onnx(new, tmp_path / "m.onnx", kwargs=example, check=False)
    assert list(made.inputs) == ["input_ids", "attention_mask", "labels"]
    assert made.outputs == {"loss": (), "logits": ("batch", "sequence", 89)}
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[0, 4:] = 0
    feeds = {"input_ids": tokens(3, 6), "attention_mask": mask, "labels": tokens(3, 6, 2)}
    with torch.no_grad():
        want = new(**feeds, use_cache=False)
    loss, logits = run(made.path, feeds)
    torch.testing.assert_close(torch.from_numpy(loss), want.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(logits), want.logits, rtol=1e-4, atol=1e-5)


def test_decoding_with_a_cache(tmp_path):
    new = rewritten("llama")[1]
    randomise(new)
    with torch.no_grad():
        cache = new(input_ids=tokens(2, 7)).past_key_values
    made = to_onnx(
        new, tmp_path / "m.onnx", kwargs={"input_ids": tokens(2, 1, 3), **given_cache(new, cache)}, check=False
    )
    assert made.inputs["past_key_values.layers.0.keys"] == ("batch", 2, "past_sequence", 8)
    assert "present_key_values.layers.0.keys" in made.outputs
    with torch.no_grad():
        cache = new(input_ids=tokens(3, 5)).past_key_values
        feeds = {"input_ids": tokens(3, 1, 4)}
        for i, layer in enumerate(cache.layers):
            feeds |= {f"past_key_values.layers.{i}.keys": layer.keys.clone()}
            feeds |= {f"past_key_values.layers.{i}.values": layer.values.clone()}
        want = new(input_ids=feeds["input_ids"], **given_cache(new, cache))
    got = dict(zip(made.outputs, run(made.path, feeds), strict=True))
    torch.testing.assert_close(torch.from_numpy(got["logits"]), want.logits, rtol=1e-4, atol=1e-5)
    keys = torch.from_numpy(got["present_key_values.layers.1.keys"])
    torch.testing.assert_close(keys, want.past_key_values.layers[1].keys, rtol=1e-4, atol=1e-5)


def test_standard_profile_has_standard_nodes_only(tmp_path):
    made = to_onnx(plain(), tmp_path / "m.onnx", profile="standard")
    assert made.nodes["resfx"] == 0 and not onnx.load(made.path).functions


def test_any_model(tmp_path):
    path, x = tmp_path / "m.onnx", batch()
    assert to_onnx(Stack().eval(), path, (x,), check="onnxruntime").nodes["resfx"] == 0
    traced = resfx.rewrite(torch.fx.symbolic_trace(Stack().eval()), "ddl", (x,))
    assert to_onnx(traced, path, (x,)).nodes["resfx"] == 2
    axes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(Stack().eval(), (x,), dynamic_shapes=(axes,))
    assert to_onnx(resfx.rewrite(program, "ddl"), path).nodes["resfx"] == 2
    assert to_onnx(program, path).inputs == {"x": ("batch", "sequence", 16)}
    with pytest.raises(ExportError, match="example"):
        to_onnx(Stack(), tmp_path / "none.onnx")


class Outputs(nn.Module):
    def forward(self, x, scale=None, **more):
        y = 2 * x
        return {"same": x, "twice": [y, y], "none": None, "flag": True, "more": more["extra"] + y}


class SqueezesNothing(nn.Module):
    """Squeezes an axis that is longer than one, as PixArt of diffusers does."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x):
        return (x + self.block(x).squeeze(1)).squeeze(1)


def test_a_squeeze_of_a_long_axis_does_nothing(tmp_path):
    x = torch.randn(2, 3, 4)
    to_onnx(resfx.rewrite(SqueezesNothing().eval(), "rezero", args=(x,)), tmp_path / "m.onnx", args=(x,))


def test_outputs_of_any_structure(tmp_path):
    made = to_onnx(Outputs(), tmp_path / "m.onnx", (batch(),), {"extra": batch()})
    assert list(made.inputs) == ["x", "extra"]
    assert list(made.outputs) == ["same", "twice.0", "twice.1", "more"]


def test_axes_as_asked(tmp_path):
    new, path = plain(), tmp_path / "m.onnx"
    still = to_onnx(new, path, dynamic=False)
    assert still.inputs == {"x": (3, 5, 16)} and still.notes
    assert to_onnx(new, path, dynamic={"x": {0: "rows"}}, check=False).outputs == {"output": ("rows", 5, 16)}
    assert to_onnx(new, path, (batch(1),)).inputs == {"x": ("batch", "sequence", 16)}
    with pytest.raises(ExportError, match="fixes its size to 16"):
        to_onnx(new, path, dynamic={"x": {2: "width"}})
    with pytest.raises(ExportError, match="inputs are x"):
        to_onnx(new, path, dynamic={"ids": {0: "batch"}})


def test_the_model_is_not_changed(tmp_path):
    new = stack().train()
    before = {n: v.clone() for n, v in new.state_dict().items()}
    variants = new.variants
    made = to_onnx(new, tmp_path / "m.onnx")
    assert not {n.op_type for n in onnx.load(made.path).graph.node} & {"Dropout", "RandomUniformLike"}
    assert new.training and all(m.training for m in new.modules()) and new.variants == variants
    assert all(torch.equal(v, before[n]) for n, v in new.state_dict().items())


def test_weights_keep_their_names(tmp_path):
    made = to_onnx(plain(), tmp_path / "m.onnx", check=False)
    names = {i.name for i in onnx.load(made.path).graph.initializer}
    assert {"blocks.0.down.bias", "resfx.ddl.blocks.1.add0.mix"} <= names
    assert b".py" not in made.path.read_bytes()  # no paths of the machine that made it


@pytest.mark.matrix
def test_external_data(tmp_path, monkeypatch):
    monkeypatch.setattr(lowering, "EXTERNAL_ABOVE", 100)
    new, folder = stack(), tmp_path / "made" / "here"
    made = to_onnx(new, folder / "m.onnx")
    assert made.data == folder / "m.onnx.data" and made.data.stat().st_size > 5000
    assert sorted(p.name for p in folder.iterdir()) == ["m.onnx", "m.onnx.data"]
    want = run(made.path, {"x": batch()})[0]
    moved = folder.rename(tmp_path / "there")
    np.testing.assert_array_equal(run(moved / "m.onnx", {"x": batch()})[0], want)
    randomise(new)
    again = to_onnx(new, moved / "m.onnx", external_data=True, check=False)
    assert np.abs(run(again.path, {"x": batch()})[0] - want).max() > 1e-3
    assert to_onnx(new, tmp_path / "one.onnx", external_data=False, check=False).data is None


def test_one_tensor_given_twice_is_two_inputs_of_a_capture():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = Stack()

        def forward(self, x, y):
            return self.stack(x) - y

    model, x, y = Pair().eval(), batch(), batch(3, 5) + 1
    new = resfx.rewrite(model, "ddl", (x, x))
    assert torch.equal(new(x, y), model(x, y))


def test_new_modules_start_in_the_mode_of_the_model():
    new = resfx.rewrite(Stack().eval(), "ddl", (batch(),))
    assert not any(m.training for m in new.modules())
    before = new.variants
    new.eval()(batch())
    assert new.variants == before == ["blocks.0: 1", "blocks.1: 1"]


class Halves(nn.Module):
    """A constant taken apart, of which the exporter's optimizer says that it leaves it alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        a, b = self.weight.chunk(2)
        return x @ a + x.tanh() @ b


def test_the_exporter_says_nothing_that_is_not_for_the_user(tmp_path, capfd):
    to_onnx(Halves(), tmp_path / "halves.onnx", torch.randn(2, 3, 4))
    assert capfd.readouterr() == ("", "")
