"""The command line, in this process and once as a program of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hosts import BY_NAME

import resfx
from resfx.cli.cli import main
from resfx.cli.settings import SettingError, config_of, read_value
from resfx.methods.base import methods

MODELS = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(layers))
    def forward(self, x, scale=None):
        for layer in self.layers:
            x = x + layer(x)
        return x if scale is None else x * scale

def model():
    torch.manual_seed(0)
    return Tiny().eval()

def with_args():
    return model(), (torch.linspace(-1, 1, 48).sin().view(2, 3, 8),)

def with_kwargs():
    return model(), (torch.linspace(-1, 1, 48).sin().view(2, 3, 8),), {"scale": torch.ones(())}

class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)
    @staticmethod
    def backward(ctx, grad):
        return -grad

class Reversing(Tiny):
    def forward(self, x):
        return Reverse.apply(super().forward(x) * 1.0)

def reversing():
    return Reversing().eval(), (torch.linspace(-1, 1, 48).sin().view(2, 3, 8),)

class Branching(Tiny):
    def forward(self, x):
        return super().forward(x) if x.shape[0] > 1 else x

def branching():
    return Branching().eval()

def plain():
    return nn.Linear(3, 3), (torch.zeros(2, 3),)

def broken():
    raise RuntimeError("no weights here")

ready = model()
number = 3
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The name of a module with models in it, in the current folder."""
    (tmp_path / "tiny_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "tiny_models"
    sys.modules.pop("tiny_models", None)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    config = BY_NAME["gpt2"].make().config
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("factory", ["model", "with_args", "with_kwargs", "ready", "Tiny"])
def test_scan_of_an_import_path(tiny, factory, capsys):
    assert main(["scan", f"{tiny}:{factory}"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Tiny: 2 residual adds in 1 stream") and err == ""


def test_scan_as_json_and_files(tiny, capsys, tmp_path):
    page = ["--html", "report.html"]
    assert main(["scan", f"{tiny}:with_args", "--json", "--out", "report.json", "--draw", "report.svg", *page]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((tmp_path / "report.json").read_text())
    assert data["model"] == "Tiny" and len(data["sites"]) == 2
    assert (tmp_path / "report.svg").read_text().startswith("<svg")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_rewrite_saves_what_resfx_load_reads(tiny, capsys, tmp_path):
    settings = ["--set", "beta_init=0.5", "--set", "eps_rule=mean", "--exclude", "layers.1"]
    command = ["rewrite", f"{tiny}:with_args", *settings]
    assert main([*command, "--out", "saved", "--html", "new.html"]) == 0
    assert "<h3>ddl</h3>" in (tmp_path / "new.html").read_text()
    out, err = capsys.readouterr()
    assert "2 rewritten by ddl" in out and "saved to saved" in err
    from tiny_models import with_args

    base, args = with_args()
    new = resfx.load(tmp_path / "saved", base, args)
    method = new._resfx.applications[0].method
    assert (method.beta_init, method.eps_rule) == (0.5, "mean")
    assert torch.equal(new(*args), base(*args))


def test_a_config_folder_and_its_file(gpt2_folder, capsys):
    assert main(["scan", str(gpt2_folder), "--batch", "3", "--length", "5"]) == 0
    assert main(["rewrite", str(gpt2_folder / "config.json"), "--include", "*.h.0", "--json"]) == 0
    out = capsys.readouterr().out
    assert "GPT2LMHeadModel: 4 residual adds" in out
    sites = json.loads(out[out.index("\n{\n") :])["sites"]
    assert [s["method"] for s in sites] == ["ddl", "ddl", "", ""]


def test_weights_in_the_folder_are_loaded(gpt2_folder, tmp_path):
    from resfx.cli.targets import load_target

    torch.manual_seed(5)
    model = BY_NAME["gpt2"].make()
    with torch.no_grad():
        model.transformer.wte.weight.fill_(0.25)
    model.save_pretrained(tmp_path / "full")
    loaded = load_target(str(tmp_path / "full")).model
    assert type(loaded).__name__ == "GPT2LMHeadModel" and bool((loaded.transformer.wte.weight == 0.25).all())


@pytest.mark.parametrize("host", ["bert", "vit", "t5", "whisper"])
def test_inputs_are_made_for_other_kinds_of_models(host):
    from resfx.cli.targets import example_inputs

    model = BY_NAME[host].make()
    inputs = example_inputs(model, 3, 4)
    with torch.no_grad():
        output = model(**inputs)
    assert output.logits.shape[0] == 3
    if host != "vit":
        assert output.logits.shape[1] == 4


def test_a_captured_program(tiny, tmp_path, capsys):
    sys.path.insert(0, str(tmp_path))
    from tiny_models import with_args

    model, args = with_args()
    torch.export.save(torch.export.export(model, args), tmp_path / "tiny.pt2")
    assert main(["scan", "tiny.pt2"]) == 0
    assert main(["bench", "tiny.pt2", "--backends", "eager", "--modes", "forward", "--repeats", "3", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "2 residual adds" in out and "eager" in out and "median ms" in out


def test_export_writes_a_file_that_runs(tiny, tmp_path, capsys):
    assert main(["export", f"{tiny}:with_args", "--out", "tiny.onnx"]) == 0
    out, err = capsys.readouterr()
    assert "2 rewritten by ddl" in out and "wrote tiny.onnx: " in err
    assert "checked in ONNX Runtime: differs from PyTorch by at most" in err
    from tiny_models import with_args

    model, args = with_args()
    (got,) = resfx.export.session(tmp_path / "tiny.onnx").run(None, {"x": args[0].numpy()})
    assert torch.allclose(torch.from_numpy(got), model(*args), atol=1e-5)


def test_bench_prints_and_writes(tiny, tmp_path, capsys):
    command = ["bench", f"{tiny}:with_args", "--backends", "eager", "--repeats", "3", "--warmup", "0"]
    assert main([*command, "--out", "bench.json", "--plot", "bench.svg"]) == 0
    out, err = capsys.readouterr()
    assert "Tiny -> Tiny + ddl" in out and "[2/2] eager train" in err
    assert main([*command, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and set(json.loads(out)) == set(json.loads((tmp_path / "bench.json").read_text()))
    assert (tmp_path / "bench.svg").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["scan", "nothing_here"], ["nothing_here", "try:"]),
        (["scan", "no_such_module:model"], ["no_such_module", "ModuleNotFoundError"]),
        (["scan", "{tiny}:absent"], ["absent", "with_args"]),
        (["scan", "{tiny}:number"], ["int"]),
        (["scan", "{tiny}:broken"], ["no weights here"]),
        (["scan", "missing.pt2"], ["no such file"]),
        (["scan", "."], ["config.json"]),
        (["rewrite", "{tiny}:with_args", "--include", "nope.*"], ["nope.*", "(root)"]),
        (["rewrite", "{tiny}:plain"], ["no residual add"]),
        (["rewrite", "{tiny}:with_args", "--out", "."], ["not a save of this library"]),
    ],
)  # fmt: skip
def test_errors_say_what_to_try_without_a_traceback(tiny, command, words, capsys):
    assert main([part.format(tiny=tiny) for part in command]) == 1
    _, err = capsys.readouterr()
    assert err.startswith("resfx: ") and "Traceback" not in err and "try:" in err
    assert all(word in err for word in words)


def test_the_check_can_be_left_out(tiny, capsys):
    assert main(["rewrite", f"{tiny}:reversing"]) == 1
    assert "a backward written by hand (Reverse)" in capsys.readouterr().err
    assert main(["rewrite", f"{tiny}:reversing", "--no-check"]) == 0


def test_version_of_library_and_torch(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and out.startswith("resfx ") and torch.__version__ in out


@pytest.mark.parametrize("command", [["scan"], ["rewrite"], ["export", "--out", "never.onnx"], ["bench"]])
def test_a_callable_without_inputs_is_told_how_to_give_them(tiny, command, capsys, tmp_path):
    assert main([*command[:1], f"{tiny}:branching", *command[1:]]) == 1
    err = capsys.readouterr().err
    assert "(model, args)" in err and "args=(" not in err
    assert not (tmp_path / "never.onnx").exists()


def test_a_traceable_model_without_inputs_is_rewritten_and_said_to_be_unchecked(tiny, capsys):
    assert main(["rewrite", f"{tiny}:model"]) == 0
    assert "not checked against the original" in capsys.readouterr().err
    assert main(["rewrite", f"{tiny}:with_args"]) == 0
    assert "not checked" not in capsys.readouterr().err
    assert main(["export", f"{tiny}:model", "--out", "never.onnx"]) == 1
    assert "(model, args)" in capsys.readouterr().err


def test_a_config_says_which_model_it_became(gpt2_folder, tmp_path, capsys):
    config = json.loads((gpt2_folder / "config.json").read_text())
    assert main(["scan", str(gpt2_folder)]) == 0
    assert capsys.readouterr().err == ""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"}))
    assert main(["scan", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("GPT2Model: ") and "base model GPT2Model" in err and "GPT2LMHeadModel" in err
    file.write_text(json.dumps({**config, "architectures": ["MyGPT"]}))
    assert main(["scan", str(tmp_path)]) == 1
    assert "MyGPT" in capsys.readouterr().err


def test_debug_shows_the_traceback(tiny, capsys):
    assert main(["scan", f"{tiny}:broken", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_scan_that_finds_nothing_is_not_a_success(tiny, capsys):
    assert main(["scan", f"{tiny}:plain"]) == 1
    assert "no residual add" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "magic"], "invalid choice"),
        (["--set", "beta_init"], "FIELD=VALUE"),
        (["--set", "colour=red"], "no field 'colour'"),
        (["--set", "beta_init=7"], "beta_init must lie in"),
        (["--set", "gate_hidden=1.5"], "whole number"),
        (["--set", "target=moon"], "one of context, stream"),
        (["--forms", "round"], "invalid choice"),
    ],
)
def test_wrong_usage_is_exit_code_two(options, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["rewrite", "anything:at_all", *options])
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_every_method_is_a_choice(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["rewrite", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in methods())


def test_settings_are_read_by_the_fields_types():
    config = config_of(
        "ddl", ["beta_init=1", "gate_hidden=8", "float32=false", "target=stream", "eps=1e-4"], "published"
    )
    assert config == resfx.DDL(
        beta_init=1.0, gate_hidden=8, float32=False, target="stream", eps=1e-4, start="published"
    )  # fmt: skip
    assert read_value("none", int | None) is None and read_value("3", int | None) == 3
    assert read_value("1, 2,3", tuple[int, ...]) == (1, 2, 3)
    assert read_value("1,2.5", tuple[int, float]) == (1, 2.5)
    assert read_value("7", str | int) == 7 and read_value("x", str | int) == "x"
    for text, kind in (("x", int | None), ("maybe", bool), ("1", tuple[int, int]), ("1", dict)):
        with pytest.raises(ValueError):
            read_value(text, kind)
    with pytest.raises(SettingError, match="no field"):
        config_of("ddl", ["nothing=1"])


def test_as_a_program_that_loads_only_what_it_needs(tiny, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "resfx", "scan", f"{tiny}:with_args"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Tiny: 2 residual adds")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"resfx.cli", "torch"} <= loaded
    assert not loaded & {"transformers", "onnx", "onnxscript", "onnxruntime", "matplotlib"}
