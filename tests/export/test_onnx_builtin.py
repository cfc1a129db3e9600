"""``profile="ort-cuda"``: bodies that call ONNX Runtime's own kernels, held against the standard bodies on the CPU.

No CUDA provider is needed: kernels that the CPU provider has too, in the type at hand, are run there; of the others the
nodes are looked at.
"""

from __future__ import annotations

import onnx
import pytest
import torch
from hosts.made import randomise
from hosts.onnx_models import Stack, batch, plain
from hosts.onnx_nodes import delta_node, node, run

import resfx
from resfx.errors import ExportError
from resfx.export import builtin, to_onnx

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

recent = pytest.mark.skipif(builtin.installed()[:2] < (1, 31), reason="onnxruntime has these kernels since 1.31")

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def drawn(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def kernels_in(path) -> list[str]:
    """The built-in kernels that the bodies of a file call."""
    return [n.op_type for f in onnx.load(path).functions for n in f.node if n.domain == "com.microsoft"]


def same(tmp_path, name: str, op: str, given, dtype: torch.dtype, /, **attributes) -> None:
    """One node with both bodies, on the CPU."""
    settings = {**attributes, "stash_type": onnx.TensorProto.FLOAT}
    feeds = node(tmp_path / "plain.onnx", op, given, dtype, **settings)
    assert (
        node(tmp_path / "builtin.onnx", op, given, dtype, builtin_for=builtin.builtin_for, **settings).keys()
        == feeds.keys()
    )
    assert kernels_in(tmp_path / "plain.onnx") == [] and kernels_in(tmp_path / "builtin.onnx") == [name]
    want, got = (run(tmp_path / f"{which}.onnx", feeds, kernels=False)[0] for which in ("plain", "builtin"))
    scale = want.abs().max()
    assert got.dtype == want.dtype and got.shape == want.shape
    bound = 2e-6 if dtype == F32 else 4 * torch.finfo(dtype).eps
    assert (got.double() - want.double()).abs().max() <= bound * scale


@recent
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("form", ["per token", "static", "features", "plain"])
def test_reads_of_channels(form, dtype, tmp_path):
    n, d = 4, 32
    weights = drawn(*{"static": (n, 1), "features": (n, d)}.get(form, (2, 5, n, 1))).softmax(-2)
    given = [drawn(2, 5, n, d, dtype=dtype), weights, None]
    centred = int(form != "plain")
    same(tmp_path, "HyperConnectionPreMix", "CombineChannels", given, dtype, lead=1, centred=centred)


@recent
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("form", ["per token", "static", "unit", "no matrix"])
def test_writes_of_channels(form, dtype, tmp_path):
    n, d = 4, 32
    lead = () if form == "static" else (2, 5)
    matrix = drawn(*lead, n, n).softmax(-1)
    given = [drawn(2, 5, n, d, dtype=dtype), drawn(2, 5, d, dtype=dtype), drawn(*lead, n)]
    given.append(None if form == "no matrix" else matrix)
    same(tmp_path, "HyperConnectionPostMix", "MixChannels", given, dtype, unit=int(form == "unit"))


@recent
@pytest.mark.parametrize(("kernel", "silu", "bias", "based"), [(4, 1, True, True), (2, 0, False, False)])
def test_short_convolutions(kernel, silu, bias, based, tmp_path):
    d, size = 32, 9
    given = [drawn(2, size + kernel - 1, d), drawn(d, kernel), drawn(d) if bias else None]
    given.append(drawn(2, size, d) if based else None)
    same(tmp_path, "CausalConvWithState", "ShortConvolution", given, F32, silu=silu, kernel=kernel)


@recent
@pytest.mark.parametrize(
    ("heads", "shared", "window", "size"), [(4, 4, 4, 21), (4, 2, 16, 40), (2, 1, 1, 5), (2, 2, 9, 3)]
)
def test_short_windows(heads, shared, window, size, tmp_path):
    q, k, v = (drawn(2, h, size, 16, dtype=F16) for h in (heads, shared, shared))
    settings = {"window": window, "causal": 1, "chunk": 0}
    same(tmp_path, "GroupQueryAttention", "WindowedAttention", [q, k, v, None], F16, scale=0.375, **settings)
    same(tmp_path, "GroupQueryAttention", "WindowedAttention", [q, k, v, None], F16, scale=0.0, **settings)


@recent
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_the_delta_shortcut(mixed, dtype, tmp_path):
    x, f = drawn(2, 5, 32, dtype=dtype), drawn(2, 5, 32, dtype=dtype)
    mix = torch.tensor(0.7).to(dtype) if mixed else None
    given = [x, f, torch.rand(2, 5, 1), drawn(2, 5, 1), mix, None]
    same(tmp_path, "GatedAdd", "DeltaShortcut", given, dtype, eps2=1e-3, add=1)


NOT_THEIRS = {
    "a window over float32": ("WindowedAttention", F32, {}, 16, 5),
    "a centred window": ("WindowedAttention", F16, {"causal": 0}, 16, 5),
    "chunks": ("WindowedAttention", F16, {"chunk": 1}, 16, 5),
    "a width that is no multiple of 8": ("WindowedAttention", F16, {}, 12, 5),
    "more keys than queries": ("WindowedAttention", F16, {}, 16, 7),
}


@pytest.mark.parametrize("case", NOT_THEIRS)
def test_what_no_kernel_does_keeps_its_body(case, tmp_path):
    op, dtype, changes, width, keys = NOT_THEIRS[case]
    given = [drawn(2, 2, 5, width, dtype=dtype), *(drawn(2, 2, keys, width, dtype=dtype) for _ in range(2)), None]
    settings = {"window": 4, "causal": 1, "chunk": 0, "scale": 0.0, "stash_type": 1} | changes
    node(tmp_path / "m.onnx", op, given, dtype, builtin_for=builtin.builtin_for, **settings)
    assert kernels_in(tmp_path / "m.onnx") == []


def test_a_mix_per_feature_and_doubles_keep_their_body(tmp_path, monkeypatch):
    attach = builtin.builtin_for
    for dtype, mix in ((F32, torch.rand(8)), (torch.float64, None)):
        gates = torch.rand(2, 1, dtype=torch.float64 if dtype == torch.float64 else F32)
        given = [drawn(2, 8, dtype=dtype), drawn(2, 8, dtype=dtype), gates, gates, mix, None]
        node(tmp_path / "m.onnx", "DeltaShortcut", given, dtype, builtin_for=attach, eps2=1e-3, add=1, stash_type=1)
        assert kernels_in(tmp_path / "m.onnx") == []


@recent
def test_in_bfloat16_the_nodes_are_there(tmp_path):
    """The CPU provider lacks most of these; CUDA has them."""
    q = drawn(2, 2, 5, 16, dtype=BF16)
    settings = {"window": 4, "causal": 1, "chunk": 0, "scale": 0.0, "stash_type": 1}
    node(tmp_path / "m.onnx", "WindowedAttention", [q, q, q, None], BF16, builtin_for=builtin.builtin_for, **settings)
    assert kernels_in(tmp_path / "m.onnx") == ["GroupQueryAttention"]
    x = drawn(2, 8, 4, dtype=BF16)
    node(
        tmp_path / "m.onnx", "ShortConvolution", [x, drawn(4, 4, dtype=BF16), None, None], BF16,
        builtin_for=builtin.builtin_for, silu=1, kernel=4, stash_type=1,
    )  # fmt: skip
    assert kernels_in(tmp_path / "m.onnx") == ["CausalConvWithState"]


@pytest.mark.every(2)
@recent
@pytest.mark.parametrize("mode", ["ddl", pytest.param("mhc", marks=pytest.mark.matrix), "hyper_connections"])
def test_whole_models(mode, tmp_path):
    new = resfx.rewrite(Stack().eval(), mode, (batch(),))
    randomise(new)
    made = to_onnx(new, tmp_path / "m.onnx", profile="ort-cuda")
    assert made.nodes["com.microsoft"] >= 2 and made.differences["onnxruntime"] < 1e-5
    assert set(made.differences) == {"onnxruntime"} and "com.microsoft" in made.notes[0]
    assert onnx.load(made.path).opset_import[-1].version == 1
    assert {o.domain for o in onnx.load(made.path).opset_import} == {"", "resfx", "com.microsoft"}


@recent
def test_no_kernel_on_the_cpu_is_said(tmp_path):
    new = resfx.rewrite(Stack().bfloat16().eval(), "ddl", (batch().bfloat16(),))
    made = to_onnx(new, tmp_path / "m.onnx", profile="ort-cuda")
    assert made.differences == {} and "no kernel for the type of DeltaShortcut" in made.notes[0]
    assert kernels_in(made.path) == ["GatedAdd"]


def test_an_old_runtime_is_refused(tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(ExportError, match=r"GatedAdd[\s\S]*1\.23\.2 is installed[\s\S]*since 1\.29[\s\S]*portable"):
        to_onnx(plain(), tmp_path / "m.onnx", profile="ort-cuda")
    assert not list(tmp_path.iterdir())
    to_onnx(Stack().eval(), tmp_path / "m.onnx", (batch(),), profile="ort-cuda", check=False)  # needs none of them
    with pytest.raises(ValueError, match="cannot run profile='ort-cuda'"):
        to_onnx(plain(), tmp_path / "m.onnx", profile="ort-cuda", check="reference")


@recent
def test_kernels_of_this_library_win(library, tmp_path):
    """A file for CUDA still takes the CPU kernels where they are registered."""
    x, f = drawn(2, 5, 32), drawn(2, 5, 32)
    gates = torch.rand(2, 5, 1)
    feeds = delta_node(tmp_path / "plain.onnx", x, f, gates, gates)
    given = [x, f, gates, gates, None, None]
    settings = {"eps2": 1e-3, "add": 1, "stash_type": 1}
    node(tmp_path / "builtin.onnx", "DeltaShortcut", given, F32, builtin_for=builtin.builtin_for, **settings)
    want, got = (run(tmp_path / f"{n}.onnx", feeds, kernels=library)[0] for n in ("plain", "builtin"))
    assert torch.equal(got, want)
