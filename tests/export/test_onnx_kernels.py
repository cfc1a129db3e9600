"""The CPU kernels for ONNX Runtime: built, found, and held against equations in float64."""

from __future__ import annotations

import collections
import os
import shutil

import onnx
import onnxruntime
import pytest
import torch
from hosts import tokens
from hosts.made import randomise, rewritten
from hosts.onnx_models import batch, plain
from hosts.onnx_nodes import DTYPES, WAYS, delta_node, delta_oracle, run, tolerance

from resfx.cli.cli import main
from resfx.errors import ExportError
from resfx.export import build_kernels, runtime, session, to_onnx
from resfx.ops import library as building

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.skipif(not any(map(shutil.which, building.COMPILERS)), reason="no C++ compiler"),
]


@pytest.mark.parametrize("width", [1, 77, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_delta_against_the_equation(way, dtype, width, library, tmp_path):
    if width == 1 and dtype in (torch.float16, torch.bfloat16):
        width = 2  # one feature: k is 1 or -1, and the error of the whole is that of p alone
    names, add = WAYS[way]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, f = torch.randn(2, 3, width).to(dtype), torch.randn(2, 3, width).to(dtype)
    beta, v = torch.rand(2, 3, 1, dtype=wide), torch.randn(2, 3, 1, dtype=wide)
    mix = torch.tensor(0.7) if width == 77 else torch.rand(width)
    values = {"mix": mix.to(dtype), "total": x + 0.5 * f}
    optional = {n: values[n] if n in names else None for n in ("mix", "total")}
    want = delta_oracle(x, f, beta, v, **optional, eps2=1e-3, add=add)
    feeds = delta_node(tmp_path / "m.onnx", x, f, beta, v, **optional, add=add)
    got = run(tmp_path / "m.onnx", feeds, kernels=library)[0]
    assert got.dtype == dtype and (got.double() - want).abs().max() <= tolerance(dtype, want)


def without_bodies(path, to):
    model = onnx.load(path)
    del model.functions[:]
    onnx.save(model, to)
    return to


def test_a_session_finds_what_was_built(library, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFX_CACHE", str(tmp_path / "cache"))
    made = to_onnx(plain(), tmp_path / "m.onnx", check=False)
    bare = without_bodies(made.path, tmp_path / "bare.onnx")  # only a kernel can run it
    with pytest.raises(ExportError, match="DeltaShortcut"):
        session(bare)
    with pytest.raises(ExportError, match=r"not built[\s\S]*resfx kernels"):
        session(bare, kernels=True)
    with pytest.raises(ExportError, match=r"no file .*none\.so"):
        session(bare, kernels=tmp_path / "none.so")
    building.kernels_path().parent.mkdir()
    shutil.copy(library, building.kernels_path(native=False))
    assert building.built_kernels() == building.kernels_path(native=False) != building.kernels_path()
    shutil.copy(library, building.kernels_path())
    assert building.built_kernels() == building.kernels_path()
    feeds = {"x": batch()}
    want = run(made.path, feeds, kernels=False)[0]
    for given in (None, True, library):
        torch.testing.assert_close(run(bare, feeds, kernels=given)[0], want)
    with pytest.raises(ExportError, match="DeltaShortcut"):
        session(bare, kernels=False)
    building.kernels_path().write_text("no library")
    torch.testing.assert_close(run(made.path, feeds)[0], want)  # falls back to the bodies
    with pytest.raises(ExportError, match="kernels"):
        session(made.path, kernels=True)


def test_never_beside_another_provider(library):
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert runtime._library("m.onnx", None, both) is None and runtime._library("m.onnx", False, both) is None
    for asked in (True, library):
        with pytest.raises(ValueError, match="CPU alone"):
            runtime._library("m.onnx", asked, both)
    assert runtime._library("m.onnx", library, ["CPUExecutionProvider"]) == str(library)


def test_threads_share_the_rows(library, tmp_path):
    x, f = torch.randn(1001, 512), torch.randn(1001, 512)
    beta, v = torch.rand(1001, 1), torch.randn(1001, 1)
    path = tmp_path / "m.onnx"
    feeds = delta_node(path, x, f, beta, v)
    one = run(path, feeds, kernels=library, threads=1)[0]
    assert torch.equal(run(path, feeds, kernels=library, threads=3)[0], one)
    want = delta_oracle(x, f, beta, v, None, None, 1e-3, True)
    assert (one.double() - want).abs().max() < tolerance(torch.float32, want)
    none = {name: t[:0] for name, t in feeds.items()}
    assert run(path, none, kernels=library)[0].shape == (0, 512)


def test_shapes_that_do_not_fit(library, tmp_path):
    feeds = delta_node(tmp_path / "m.onnx", torch.randn(3, 8), torch.randn(4, 8), torch.rand(4, 1), torch.rand(4, 1))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="resfx::DeltaShortcut: x, f and total"):
        run(tmp_path / "m.onnx", feeds, kernels=library)


@pytest.mark.parametrize("flags", ["", "-DRESFX_SOFT_HALF"], ids=["native", "software"])
def test_half_types_round_as_everywhere(flags, library, tmp_path, monkeypatch):
    if flags:
        monkeypatch.setattr(building, "FLAGS", ["-O1" if f == "-O3" else f for f in building.FLAGS])  # quicker to build
        monkeypatch.setenv("CXX", f"{shutil.which('g++') or shutil.which('c++')} {flags}")
        library = build_kernels(tmp_path / "soft.so", native=False)
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = every.view(dtype)
        # Beyond these sizes bfloat16 has sums of squares, or of products, that float32 has not.
        x = torch.where(x.isfinite() & (x.abs() < 1e18), x, 0)[:, None].expand(-1, 2).contiguous()
        f = (x[torch.randperm(len(x))] * 0.7).contiguous()
        gates = torch.zeros(len(x), 1)
        feeds = delta_node(tmp_path / "m.onnx", x, f, gates, gates)
        got = run(tmp_path / "m.onnx", feeds, kernels=library)[0]
        assert torch.equal(got, x + f) and x.count_nonzero() > 90000


NODES = {  # fused nodes of a GPT-2 of two blocks
    "attnres": {"AttentionRead": 4},
    "canon": {"ShortConvolution": 8},
    "ddl": {"DeltaShortcut": 4},
    "delta_attnres": {"AttentionRead": 3},
    "denseformer": {"WeightedSum": 2},
    "depth_read": {"WindowedAttentionRow": 1},
    "elc": {"WeightedSum": 1},
    "hyper_connections": {"CombineChannels": 5, "MixChannels": 4},
    "mhc": {"CombineChannels": 5, "MixChannels": 4, "Sinkhorn": 3},
    "mudd": {"WeightedSum": 5},
    "short_conv": {"ShortConvolution": 6},
    "short_swa": {"WindowedAttention": 2},
    "vertical": {"WeightedSum": 1},
}
SLOW = pytest.mark.matrix


@pytest.mark.every(2)
@pytest.mark.parametrize("name", [n if n in ("short_swa", "attnres") else pytest.param(n, marks=SLOW) for n in NODES])
def test_whole_models(name, library, tmp_path):
    """Every fused node of an exported model, run by kernel and by body, at sizes it was not traced with."""
    _, new, _ = rewritten("gpt2", name)
    randomise(new)
    made = to_onnx(new, tmp_path / "m.onnx", check=False)
    assert collections.Counter(n.op_type for n in onnx.load(made.path).graph.node if n.domain == "resfx") == NODES[name]
    for rows, length in ((2, 3), (3, 29)):
        ids = tokens(rows, length)
        with torch.no_grad():
            want = new(input_ids=ids).logits
        for kernels in (library, False):
            got = dict(zip(made.outputs, run(made.path, {"input_ids": ids}, kernels=kernels), strict=True))
            torch.testing.assert_close(got["logits"], want, rtol=1e-4, atol=1e-5)


def test_no_compiler(tmp_path, monkeypatch):
    target = tmp_path / "k.so"
    target.write_text("old")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ExportError, match=r"no C\+\+ compiler[\s\S]*apt install"):
        build_kernels(target)
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "--no-such-flag"))
    with pytest.raises(ExportError, match="no-such-flag"):
        build_kernels(target)
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["k.so"]
    monkeypatch.setattr(building, "COMPILERS", ())
    with pytest.raises(ExportError, match="compiler"):
        build_kernels(target)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["kernels", "--out", str(tmp_path / "k.so")]) == 1
    assert "no C++ compiler" in capsys.readouterr().err
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(building, "FLAGS", ["-O0" if f == "-O3" else f for f in building.FLAGS])
    assert main(["kernels", "--portable", "--out", str(tmp_path / "k.so")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "k.so")
    feeds = delta_node(tmp_path / "m.onnx", *torch.randn(2, 3, 8), *torch.rand(2, 3, 1))
    want = run(tmp_path / "m.onnx", feeds, kernels=False)[0]
    torch.testing.assert_close(run(tmp_path / "m.onnx", feeds, kernels=tmp_path / "k.so")[0], want)


def test_the_name_tells_builds_apart(monkeypatch):
    before = building.kernels_path()
    monkeypatch.setattr(building, "_features", lambda: "another processor")
    assert building.kernels_path() != before
    assert building.kernels_path(native=False) == building.kernels_path(native=False)
