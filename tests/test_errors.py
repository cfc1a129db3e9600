"""Bad input: an error that says what was asked, what was found and what to try; nothing changed, no file behind."""

from __future__ import annotations

import builtins
import copy
import inspect
import json

import pytest
import torch
from hosts import BY_NAME
from hosts.made import randomise, rewritten
from torch import nn

import resfx
from resfx import errors
from resfx.passes.check import first_broken_site


class Residual(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc(self.norm(x)).relu()


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x - 1


def says(error: errors.ResfxError) -> None:
    assert error.asked and error.found and error.try_
    assert "found:" in str(error) and "try:" in str(error)


def test_uncapturable_model_names_the_line_and_the_remedy():
    with pytest.raises(errors.CaptureError, match="control flow that depends on tensor values") as caught:
        resfx.rewrite(Branching(), args=(torch.randn(3, 4),))
    says(caught.value)
    assert "test_errors.py" in str(caught.value) and "torch.where" in str(caught.value)


def test_model_without_inputs_says_what_to_pass():
    with pytest.raises(errors.CaptureError, match="args=") as caught:
        resfx.rewrite(BY_NAME["nanogpt"].make())
    says(caught.value)


@pytest.mark.parametrize("model", [3, None, [nn.Linear(2, 2)], "no_such_file.pt2"])
def test_not_a_model(model):
    with pytest.raises(errors.CaptureError) as caught:
        resfx.rewrite(model)
    says(caught.value)


@pytest.mark.parametrize(("wrap", "remedy"), [
    (torch.jit.script, "scripted from"), (nn.DataParallel, r"\.module"), (torch.compile, "_orig_mod"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_wrapped_models_say_what_to_pass(wrap, remedy):
    with pytest.raises(errors.CaptureError, match=remedy) as caught:
        resfx.rewrite(wrap(nn.Sequential(nn.Linear(8, 8))), "ddl", args=(torch.randn(2, 8),))
    says(caught.value)


def test_damaged_program_file(tmp_path):
    path = tmp_path / "broken.pt2"
    path.write_bytes(b"not a program")
    with pytest.raises(errors.CaptureError, match="cannot load") as caught:
        resfx.scan(path)
    says(caught.value)


def test_model_without_residual_adds():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert resfx.scan(net, args=(torch.randn(2, 4),)).sites == []
    with pytest.raises(errors.NoSitesError, match="no residual adds") as caught:
        resfx.rewrite(net, args=(torch.randn(2, 4),))
    says(caught.value)


@pytest.mark.parametrize("filters", [{"include": "decoder.*"}, {"exclude": "*"}, {"include": "0", "exclude": ["0"]}])
def test_filters_that_leave_nothing(filters):
    net = nn.Sequential(Residual(), Residual())
    with pytest.raises(errors.NoSitesError, match="globs over owner names, such as: 0, 1") as caught:
        resfx.rewrite(net, args=(torch.randn(2, 8),), **filters)
    says(caught.value)
    assert not any("resfx" in name for name, _ in net.named_modules())


def test_two_rewrites_of_one_site_and_of_different_sites():
    net, x = nn.Sequential(Residual(), Residual()), torch.randn(2, 8)
    first = resfx.rewrite(net, args=(x,), include="0")
    with pytest.raises(errors.ConflictError, match="ddl rewrote it already") as caught:
        resfx.rewrite(first)
    says(caught.value)
    assert set(first.new_parameters()) == {n for n, _ in first.named_parameters() if n.startswith("resfx.ddl.0")}
    both = resfx.rewrite(first, resfx.DDL(gate_hidden=4), include="1")
    assert len(both.report.changed) == 2
    assert torch.equal(both(x), net(x))
    with pytest.raises(errors.ConflictError):
        resfx.rewrite(net, ["ddl", "ddl"], args=(x,))


def test_unknown_mode_and_start():
    net, x = nn.Sequential(Residual()), torch.randn(2, 8)
    for mode, start, words in (("dll", None, "mode='ddl'"), ("ddl", "warm", "start must be"), (3, None, "its config")):
        with pytest.raises(errors.OptionError, match=words) as caught:
            resfx.rewrite(net, mode, args=(x,), start=start)
        says(caught.value)


def test_wrong_shape_and_type_of_a_call():
    net, x = nn.Sequential(Residual(), Residual()), torch.randn(2, 8)
    new = resfx.rewrite(net, args=(x,))
    captured = len(new.variants)
    with pytest.raises(errors.CaptureError) as caught:
        new(torch.randn(2, 9))
    says(caught.value)
    with pytest.raises(errors.CaptureError):
        new(torch.randint(0, 3, (2, 8)))
    assert len(new.variants) == captured and torch.equal(new(x), net(x))


class Lossy(resfx.Method):
    """A method that breaks its promise: its start is not the plain add."""

    def build(self, place):
        return LossySite(place.width)


class LossySite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x, f, c):
        return x + f + 1e-3 * self.weight


class Dead(resfx.Method):
    """A method whose parameter never learns."""

    def build(self, place):
        return DeadSite(place.width)


class DeadSite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x, f, c):
        return x + f + 0 * self.weight


class Scale(resfx.Method):
    """A user's own method, known to nobody."""

    name = "my_scale"

    def build(self, place):
        return ScaleSite(place.width)


class ScaleSite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x, f, c):
        return x + f + self.weight * f


def test_broken_promises_are_caught_and_the_site_named():
    net, x = nn.Sequential(Residual(), Residual()), torch.randn(2, 8)
    with pytest.raises(errors.CheckError, match=r"first at lossy\.0\.add0") as caught:
        resfx.rewrite(net, Lossy(), args=(x,))
    says(caught.value)
    with pytest.raises(errors.CheckError, match="no gradient"):
        resfx.rewrite(net, Dead(), args=(x,))
    assert resfx.rewrite(net, Lossy(), args=(x,), check=False)(x).shape == x.shape


@pytest.mark.parametrize(("mode", "parameter", "site"), [
    ("ddl", "h.1.add0.mix", "h.1.add0"), ("denseformer", "h.1.read0.weight", "h.1.read0"),
    ("hyper_connections", "h.0.add1.read.read", "h.0.add1.read"),
    ("hyper_connections", "h.0.add1.read.write", "h.0.add1.write"),
])  # fmt: skip
def test_the_first_module_that_moves_the_stream_is_found_in_every_scope(mode, parameter, site):
    inputs = BY_NAME["gpt2"].inputs(2, 5)
    new = copy.deepcopy(rewritten("gpt2", mode)[1])
    applications = new._resfx.applications
    assert first_broken_site(new, (), inputs, applications) is None
    with torch.no_grad():
        new.get_parameter(f"resfx.{mode}.transformer.{parameter}").add_(0.5)
    assert first_broken_site(new, (), inputs, applications) == f"{mode}.transformer.{site}"


def test_a_users_own_method_needs_no_registration(tmp_path):
    net, x = nn.Sequential(Residual(), Residual()), torch.randn(2, 8)
    new = resfx.rewrite(net, Scale(), args=(x,))
    assert torch.equal(new(x), net(x))
    randomise(new)
    resfx.save(new, tmp_path / "mine")
    with pytest.raises(errors.SaveError, match="custom=") as caught:
        resfx.load(tmp_path / "mine", net)
    says(caught.value)
    assert torch.equal(resfx.load(tmp_path / "mine", net, custom={"my_scale": Scale})(x), new(x))


def saved(tmp_path, name="gpt2"):
    import copy

    model, shared, inputs = rewritten(name)
    new = copy.deepcopy(shared)
    randomise(new)
    resfx.save(new, tmp_path / "save")
    return model, new, inputs, tmp_path / "save"


def test_save_and_load(tmp_path):
    model, new, inputs, folder = saved(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["recipe.json", "weights.safetensors"]
    again = resfx.load(folder, model)
    assert torch.equal(again(**inputs).logits, new(**inputs).logits)
    assert not torch.equal(model(**inputs).logits, new(**inputs).logits)
    resfx.save(again, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["save"], "no temporary folder is left"


def test_save_all_weights_leaves_the_base_alone(tmp_path):
    import copy

    model, shared, inputs = rewritten("bert")
    new = copy.deepcopy(shared)
    randomise(new)
    with torch.no_grad():
        new.bert.embeddings.word_embeddings.weight.add_(1.0)
    resfx.save(new, tmp_path / "all", weights="all")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again = resfx.load(tmp_path / "all", model)
    assert torch.equal(again(**inputs).logits, new(**inputs).logits)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_base_weights_are_noticed(tmp_path):
    _, _, _, folder = saved(tmp_path)
    other = BY_NAME["gpt2"].make()
    with torch.no_grad():
        other.transformer.wte.weight.add_(0.5)
    with pytest.warns(UserWarning, match="other base weights"):
        resfx.load(folder, other)


def test_foreign_and_damaged_folders(tmp_path):
    model, _, _, folder = saved(tmp_path)

    def refuses(match):
        with pytest.raises(errors.SaveError, match=match) as caught:
            resfx.load(folder, model)
        says(caught.value)

    with pytest.raises(errors.SaveError, match="does not belong"):
        resfx.load(folder, BY_NAME["llama"].make())
    with pytest.raises(errors.SaveError, match="no recipe"):
        resfx.load(tmp_path / "nowhere", model)
    recipe = (folder / "recipe.json").read_text()
    for text, match in (
        ("{", "damaged"), ("[]", "not a recipe"), ('{"format": "other"}', "not a recipe"),
        (json.dumps({**json.loads(recipe), "version": 99}), "version 99"),
        (json.dumps({k: v for k, v in json.loads(recipe).items() if k != "applications"}), "lacks"),
        (recipe.replace('"beta_init": 1.0', '"beta_init": 7.0'), "damaged method"),
        (recipe.replace('"owner": "transformer.h.0"', '"owner": "transformer.h.9"'), "not found again"),
    ):  # fmt: skip
        (folder / "recipe.json").write_text(text)
        refuses(match)
    (folder / "recipe.json").write_text(recipe)
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    refuses("damaged")
    (folder / "weights.safetensors").unlink()
    refuses("missing")


def test_saving_keeps_other_peoples_folders(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    _, new, _ = rewritten("gpt2")
    with pytest.raises(errors.SaveError, match="not a save of this library"):
        resfx.save(new, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(errors.SaveError, match="not a rewritten module"):
        resfx.save(nn.Linear(2, 2), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    _, new, _, folder = saved(tmp_path)
    before = (folder / "weights.safetensors").read_bytes()
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        resfx.save(new, folder)
    monkeypatch.undo()
    assert (folder / "weights.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["save"]


def test_missing_optional_package(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnx":
            raise ImportError("No module named 'onnx'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", lambda n: without(n))
    with pytest.raises(errors.MissingPackageError, match=r"pip install 'resfx\[onnx\]'") as caught:
        errors.require("onnx", "onnx", "export to ONNX")
    says(caught.value)


def test_importing_loads_no_optional_package():
    import subprocess
    import sys

    optional = ("transformers", "onnx", "onnxruntime", "triton", "matplotlib")
    code = f"import sys, resfx; print([m for m in {optional} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Differs(nn.Module):
    """Computes something else while it is traced than in eager mode, in a forward that owns an add."""

    def __init__(self, error, traced):
        super().__init__()
        self.block, self.fc, self.error, self.traced = Residual(), nn.Linear(8, 8), error, traced

    def forward(self, x):
        h = self.block(x)
        return (h + self.fc(h)) * (1 + self.error if self.traced() else 1)


class DiffersAround(Differs):
    """The same in a forward that owns none."""

    def forward(self, x):
        return self.block(x) * (1 + self.error if self.traced() else 1)


def test_a_capture_that_rounds_differently_is_told_from_a_broken_rewrite():
    x = torch.randn(4, 8)
    with pytest.warns(UserWarning, match="rounds differently from its eager code"):
        resfx.rewrite(Differs(2e-7, torch.compiler.is_compiling), args=(x,))
    with pytest.raises(errors.CheckError, match="not at a rewritten site"):
        resfx.rewrite(Differs(1e-3, torch.compiler.is_compiling), args=(x,))


@pytest.mark.parametrize("traced", [torch.compiler.is_compiling, torch.compiler.is_exporting])
def test_what_a_users_own_forward_computes_while_it_is_traced_is_not_kept(traced):
    model, x = DiffersAround(1e-3, traced), torch.randn(4, 8)
    new = resfx.rewrite(model, args=(x,))
    assert torch.equal(new(x), model(x)) and torch.equal(new.train()(x[:2]), model.train()(x[:2]))


def test_a_model_that_computes_otherwise_while_exported_is_captured_as_it_is(tmp_path):
    model, x = Differs(1e-3, torch.compiler.is_exporting), torch.randn(4, 8)
    new = resfx.rewrite(model, args=(x,))
    assert torch.equal(new(x), model(x))
    resfx.save(new, tmp_path / "saved")
    assert torch.equal(resfx.load(tmp_path / "saved", model)(x), model(x))


# What torch.compile's own annotation says of a backend: newer ones may be None.
BACKEND_OR_NONE = "" if inspect.signature(torch.compile).parameters["backend"].default else " or None"
WRONG = {
    "rewrite(model, 'ddl', x, check='yes')": "rewrite: check must be true or false",
    "rewrite(model, 'ddl', x, forms=torch.ones(2))": "forms must be a text or a sequence",
    "of(new).code('blocks.9')": "there is no module 'blocks.9'",
    "of(new).code(3)": "there is no module 3",
    "export.to_onnx(new, 'x.onnx', external_data='yes')": "external_data must be one of ('auto',) or true or false",
    "export.to_onnx(new, 'x.onnx', dynamic=3)": "dynamic must be true or false or a mapping",
    "export.to_onnx(new, 'x.onnx', opset=3)": "opset must lie in 18 to 25",
    "export.to_onnx(new, 'x.onnx', profile='portible')": "try:   profile='portable'",
    "export.session('x.onnx', threads=-1)": "threads must be at least 0",
    "export.session(3)": "a path: a text or a pathlib.Path",
    "export.build_kernels(native='yes')": "native='yes'",
    "split(new, at='')": "at must be a sequence",
    "split(new, at=['blocks.1', 'blocks.1'])": "a block twice",
    "split(new, 3, at=['blocks.1'])": "stages=3 beside it",
    "checkpoint_blocks(new, every='2')": "every must be a whole number",
    "compare(model, new, x, repeats=1.5)": "repeats must be a whole number",
    "compare(model, new, x, backends=3)": "backends must be a sequence of eager",
    "page(new, 'x.html', comparison='')": "comparison must be Comparison or None",
    "page(new, 'x.html', figures='')": "figures must be a sequence",
    "load('save', model, custom={'mine': 1})": "custom must be a mapping",
    "probe(new, x, loss=3)": "loss must be a function or None",
    "probe(new, x, loss=lambda output: 3)": "loss must give one number",
    "probe(new, torch.ones(2))": "itself raises on these inputs",
    "probe(new, kwargs={'y': x})": "'y'",
    "split(new, 2, kwargs={'y': x})": "'y'",
    "split(new, 1, x).pipeline_stages('cpu')": "torch.distributed has no processes yet",
    "split(new, 1, x).pipeline_stages('nope')": "cannot place the stages",
    "compile_blocks(new, backend='indutcor')": "backend='inductor'",
    "compile_blocks(new, backend=3)": f"backend must be a text or a function{BACKEND_OR_NONE}",
    "compile_blocks(new, dynamc=True)": "dynamic=...",
    "checkpoint_blocks(new, use_rentrant=False)": "use_reentrant=...",
    "compare(3, new, x)": "before must be Module",
    "compare(model, new, x, seconds=float('nan'))": "seconds must be a number or None",
    "page(new, 'x.html', figures=[3])": "figures must be charts",
    "export.session('x.onnx', [3])": "providers must be a sequence",
    "export.to_onnx(new, 'x.onnx', check=torch.ones(2))": "check must be",
    "export.to_onnx(new, 'x.onnx', dynamic={'x': {0: ''}})": "an axis of x must have a name",
    "export.build_kernels('.')": "is a folder",
    "of(new).report.draw('x.png')": "written as .svg",
    "of(new).report.draw(3)": "a path: a text or a pathlib.Path",
    "of(new).report.methods_at('blocks.0')": "site must be Site",
    "of(new).report.methods_at(new.report.sites[0], 'mixers')": "what='mixer'",
    "DDL(eps=0)": "try:   eps=1e-05, the default",
    "DDL(eps=float('nan'))": "eps must be a number",
    "Lambdas(skips=((1, 0),))": "from 1 to 0",
}


@pytest.fixture(scope="module")
def known():
    model, x = nn.Sequential(Residual(), Residual()), torch.randn(2, 8)
    return {"torch": torch, "model": model, "x": x, "new": resfx.rewrite(model, "ddl", x)}


@pytest.mark.parametrize("call", WRONG)
def test_an_argument_of_another_type_is_refused_before_anything_is_done(call, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ResfxError) as caught:
        eval(f"resfx.{call}", {"resfx": resfx, **known})
    says(caught.value)
    assert WRONG[call] in str(caught.value) and not list(tmp_path.iterdir())
