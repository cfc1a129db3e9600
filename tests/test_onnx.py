"""ONNX export: what is in the file, what it computes in two runtimes, and what a failure leaves behind."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import randomise, rewritten
from hosts import BY_NAME, HOSTS, tokens
from torch import nn

import resfx
from resfx.errors import ExportError, MissingPackageError
from resfx.export import lowering, session, to_onnx, verify
from resfx.export.operators import fused_operators

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


class Sublayer(nn.Module):
    def __init__(self, width: int = 16, alpha: float = 1.0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width)
        self.drop, self.alpha = nn.Dropout(0.5), alpha

    def forward(self, x):
        f = self.drop(self.down(torch.relu(self.up(self.norm(x)))))
        return x + f if self.alpha == 1 else torch.add(x, f, alpha=self.alpha)


class Stack(nn.Module):
    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Sublayer(), Sublayer(alpha=alpha)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@functools.cache
def plain() -> nn.Module:
    """A rewritten model that no test changes for good."""
    return stack()


def stack(mode="ddl", **changes):
    new = resfx.rewrite(Stack(**changes).eval(), mode, (batch(),))
    randomise(new)
    return new


def batch(rows: int = 3, length: int = 5) -> torch.Tensor:
    return torch.randn(rows, length, 16, generator=torch.Generator().manual_seed(0))


def fused_nodes(path) -> list[onnx.NodeProto]:
    return [n for n in onnx.load(path, load_external_data=False).graph.node if n.domain == "resfx"]


def run(path, feeds: dict[str, torch.Tensor]) -> list[np.ndarray]:
    return session(path).run(None, {n: v.numpy() for n, v in feeds.items()})


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


DEFAULT = ("gpt2", "llama", "bert", "vit", "t5", "mixtral")


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


@pytest.mark.matrix
def test_decoding_with_a_cache(tmp_path):
    new = rewritten("llama")[1]
    randomise(new)
    with torch.no_grad():
        cache = new(input_ids=tokens(2, 7)).past_key_values
    made = to_onnx(
        new, tmp_path / "m.onnx", kwargs={"input_ids": tokens(2, 1, 3), "past_key_values": cache}, check=False
    )
    assert made.inputs["past_key_values.layers.0.keys"] == ("batch", 2, "past_sequence", 8)
    assert "present_key_values.layers.0.keys" in made.outputs
    with torch.no_grad():
        cache = new(input_ids=tokens(3, 5)).past_key_values
        feeds = {"input_ids": tokens(3, 1, 4)}
        for i, layer in enumerate(cache.layers):
            feeds |= {f"past_key_values.layers.{i}.keys": layer.keys.clone()}
            feeds |= {f"past_key_values.layers.{i}.values": layer.values.clone()}
        want = new(input_ids=feeds["input_ids"], past_key_values=cache)
    got = dict(zip(made.outputs, run(made.path, feeds), strict=True))
    torch.testing.assert_close(torch.from_numpy(got["logits"]), want.logits, rtol=1e-4, atol=1e-5)
    keys = torch.from_numpy(got["present_key_values.layers.1.keys"])
    torch.testing.assert_close(keys, want.past_key_values.layers[1].keys, rtol=1e-4, atol=1e-5)


FORMS = [
    resfx.DDL(start="published"),
    resfx.DDL(preserve="erase"),
    resfx.DDL.repository(),
    resfx.DDL(mix_per_channel=True, eps_rule="mean", target="constant", gate_hidden=4),
]


@pytest.mark.parametrize("config", FORMS, ids=["published", "erase", "repository", "channels"])
def test_forms(config, tmp_path):
    assert to_onnx(stack(config), tmp_path / "m.onnx").nodes["resfx"] == 2


def test_one_body_per_way_of_use(tmp_path):
    first = resfx.rewrite(Stack(alpha=0.5).eval(), "ddl", (batch(),), exclude="blocks.1")
    new = resfx.rewrite(first, resfx.DDL(preserve="erase"), include="blocks.1")
    randomise(new)
    made = to_onnx(new, tmp_path / "m.onnx")
    model = onnx.load(made.path)
    assert sorted(f.overload for f in model.functions) == ["mix_add", "total_add"]
    assert sorted(n.overload for n in fused_nodes(made.path)) == ["mix_add", "total_add"]
    # One way of use needs no overload: then onnx.reference runs the file as it is.
    made = to_onnx(plain(), tmp_path / "m.onnx", check=False)
    assert [f.overload for f in onnx.load(made.path).functions] == [""]


def test_the_body_is_what_runs(tmp_path):
    made = to_onnx(plain(), tmp_path / "m.onnx", check=False)
    model = onnx.load(made.path)
    del model.functions[:]
    bare = tmp_path / "bare.onnx"
    onnx.save(model, bare)
    with pytest.raises(ExportError, match="DeltaShortcut"):
        session(bare)


class Shortcut(nn.Module):
    """The operator alone, as a user's own model may call it."""

    def __init__(self, add: bool, names: tuple[str, ...]) -> None:
        super().__init__()
        self.add, self.names = add, names

    def forward(self, x, f, beta, v, one=None, other=None):
        optional = dict(zip(self.names, (one, other), strict=False))
        return resfx.ops.delta.delta_shortcut(x, f, beta, v, **optional, eps2=1e-3, add=self.add)


def delta_oracle(x, f, beta, v, mix, total, eps2: float, add: bool) -> torch.Tensor:
    """The paper's equation in float64, with the direction written out."""
    x, f, beta, v = (t.double() for t in (x, f, beta, v))
    k = f / (f.square().sum(-1, keepdim=True) + eps2).sqrt()
    update = beta * (v - (k * x).sum(-1, keepdim=True)) * k
    if mix is not None:
        update = mix.double() * (update - f)
    return (x if not add else x + f if total is None else total.double()) + update


WAYS = {
    "published": ((), False),
    "erase": ((), True),
    "interpolate": (("mix",), True),
    "scaled": (("mix", "total"), True),
    "scaled erase": (("total",), True),
}
HALF_AND_DOUBLE = [(w, d) for w in ("published", "scaled") for d in (torch.float16, torch.bfloat16, torch.float64)]


@pytest.mark.parametrize(("way", "dtype"), [*((w, torch.float32) for w in WAYS), *HALF_AND_DOUBLE], ids=str)
def test_body_against_the_equation(way, dtype, tmp_path):
    names, add = WAYS[way]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, f = torch.randn(2, 3, 8).to(dtype), torch.randn(2, 3, 8).to(dtype)
    beta, v = torch.rand(2, 3, 1, dtype=wide), torch.randn(2, 3, 1, dtype=wide)
    values = {"mix": torch.tensor(0.7).to(dtype), "total": (x + 0.5 * f)}
    given = [values[n] for n in names]
    made = to_onnx(Shortcut(add, names), tmp_path / "m.onnx", (x, f, beta, v, *given), check=False)
    assert made.nodes["resfx"] == 1
    optional = {n: values[n] if n in names else None for n in ("mix", "total")}
    want = delta_oracle(x, f, beta, v, **optional, eps2=1e-3, add=add)
    feeds = dict(zip(made.inputs, (x, f, beta, v, *given), strict=True))
    # The CPU of ONNX Runtime has no bfloat16 Add.
    backends = ["reference"] if dtype == torch.bfloat16 else ["reference", "onnxruntime"]
    # float32: rounding of a dozen operations. Half types: the sum and the result are rounded, three times eps / 2.
    bound = {torch.float32: 1e-6, torch.float64: 1e-9}.get(dtype, 2 * torch.finfo(dtype).eps) * want.abs().max()
    for backend in backends:
        got = verify.RUNNERS[backend](str(made.path))(["output"], feeds)[0]
        assert got.dtype == dtype and (got.double() - want).abs().max() <= bound


def test_every_record_matches_its_operator():
    records = fused_operators()
    assert ("resfx", "DeltaShortcut") in records
    for record in records.values():
        arguments = {a.name: str(a.type) for a in record.torch_op._schema.arguments}
        lists = [a for a, kind in arguments.items() if kind == "List[Tensor]"]
        *single, last = record.schema.inputs
        many = last.option == record.schema.FormalParameterOption.Variadic
        tensors = {p.name for p in (single if many else record.schema.inputs)}
        assert bool(lists) == many
        assert tensors == {a for a, kind in arguments.items() if kind in ("Tensor", "Optional[Tensor]")}
        attributes = set(record.schema.attributes)
        assert set(arguments) - tensors - set(lists) == attributes - set(record.derived) - {"stash_type"}


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


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_failed_check_leaves_everything_as_it_was(tmp_path, monkeypatch):
    new = plain()
    to_onnx(new, tmp_path / "old.onnx", external_data=True, check=False)
    before = contents(tmp_path)
    monkeypatch.setitem(verify.TOLERANCE, torch.float32, -1.0)
    for path in (tmp_path / "old.onnx", tmp_path / "new.onnx", tmp_path / "a" / "b" / "new.onnx"):
        with pytest.raises(ExportError, match="disagrees with the eager one in onnxruntime") as error:
            to_onnx(new, path, external_data=True)
        assert "output output" in error.value.found and "x (3, 5, 16)" in error.value.found
        assert contents(tmp_path) == before and not (tmp_path / "a").exists()


def test_a_failed_move_puts_the_old_files_back(tmp_path, monkeypatch):
    new = stack()
    to_onnx(new, tmp_path / "m.onnx", external_data=True, check=False)
    before, replace = contents(tmp_path), lowering.os.replace

    def full(source, target):
        if target == tmp_path / "m.onnx":
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(lowering.os, "replace", full)
    randomise(new)
    with pytest.raises(OSError, match="no space"):
        to_onnx(new, tmp_path / "m.onnx", external_data=True, check=False)
    assert contents(tmp_path) == before


def test_a_wrong_body_is_caught(tmp_path, monkeypatch):
    record = fused_operators()["resfx", "DeltaShortcut"]
    wrong = type(record)(record.torch_name, record.schema, lambda op, x, f, *rest, **kw: op.Add(x, f), record.flags)
    monkeypatch.setattr(lowering, "fused_operators", lambda: {("resfx", "DeltaShortcut"): wrong})
    for backend in (True, "reference"):
        with pytest.raises(ExportError, match="disagrees"):
            to_onnx(plain(), tmp_path / "m.onnx", check=backend)
    assert not list(tmp_path.iterdir())


def test_types_without_kernels(tmp_path):
    new = resfx.rewrite(Stack().bfloat16().eval(), "ddl", (batch().bfloat16(),))
    randomise(new)
    with pytest.raises(ExportError, match="onnxruntime cannot load") as error:
        to_onnx(new, tmp_path / "m.onnx")
    assert "check='reference'" in error.value.try_ and not list(tmp_path.iterdir())
    assert to_onnx(new, tmp_path / "m.onnx", check="reference").differences["reference"] < 0.05


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages(package, tmp_path, monkeypatch):
    new = plain()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"needs the package '{package}'[\s\S]*resfx\[onnx\]"):
        to_onnx(new, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_bad_options(tmp_path):
    for option in ({"opset": 26}, {"opset": 17}, {"profile": "fast"}, {"check": "cuda"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            to_onnx(plain(), tmp_path / "m.onnx", **option)


def test_session_errors(tmp_path, monkeypatch):
    import onnxruntime

    with pytest.raises(ExportError, match="no such file"):
        session(tmp_path / "none.onnx")
    made = to_onnx(plain(), tmp_path / "m.onnx", check=False)
    (tmp_path / "cut.onnx").write_bytes(made.path.read_bytes()[:-50])
    with pytest.raises(ExportError, match=r"cut\.onnx[\s\S]*damaged"):
        session(tmp_path / "cut.onnx")
    with pytest.raises(ExportError, match=r"NoSuchProvider[\s\S]*CPUExecutionProvider"):
        session(made.path, ["NoSuchProvider"])

    class FellBack(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            super().__init__(path, options, providers=["CPUExecutionProvider"])

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
    with pytest.raises(ExportError, match="fell back to CPUExecutionProvider"):
        session(made.path, both)


def test_importing_the_library_is_light():
    heavy = ["onnx", "onnxruntime", "onnxscript", "onnx_ir", "transformers", "triton"]
    code = f"import sys, resfx; print([m for m in {heavy} if m in sys.modules], callable(resfx.export.to_onnx))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["[]", "True"]


OPTIONAL = [(None, None, False), (None, None, True), (torch.tensor(0.3), None, True), (torch.full((4,), 0.3), 1, True)]


@pytest.mark.parametrize(("mix", "total", "add"), OPTIONAL, ids=["published", "erase", "scalar", "channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_torch_operator_is_sound(mix, total, add, dtype):
    x, f, given = (torch.randn(2, 3, 4).to(dtype).requires_grad_() for _ in range(3))
    beta, v = torch.rand(2, 3, 1).requires_grad_(), torch.randn(2, 3, 1).requires_grad_()
    mix = None if mix is None else mix.clone().to(dtype).requires_grad_()
    args = (x, f, beta, v, mix, None if total is None else given, 1e-6, add)
    torch.library.opcheck(torch.ops.resfx.delta_shortcut.default, args)


@pytest.mark.parametrize(("mix", "total", "add"), OPTIONAL, ids=["published", "erase", "scalar", "channels"])
def test_gradients_of_the_torch_operator(mix, total, add):
    x, f, given = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    beta, v = (torch.randn(2, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    tensors = [x, f, beta, v, *([] if mix is None else [mix.double().requires_grad_()]), *([given] if total else [])]

    def call(x, f, beta, v, mix=None, total=None):
        return torch.ops.resfx.delta_shortcut(x, f, beta, v, mix, total, 1e-3, add)

    assert torch.autograd.gradcheck(call, tensors)


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
    new.eval()(batch())
    assert len(new.variants) == 1
