"""ONNX export that fails: what is said, and what is left behind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import onnx
import pytest
import torch
from hosts.made import randomise
from hosts.onnx_models import Stack, batch, plain, stack
from packaging.version import Version

import resfx
from resfx.errors import ExportError, MissingPackageError
from resfx.export import lowering, session, to_onnx, verify
from resfx.ops.record import operators

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


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


@pytest.mark.matrix
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
    record = operators()["resfx", "DeltaShortcut"]
    wrong = dataclasses.replace(record, body=lambda op, x, f, *rest, **kw: op.Add(x, f))
    monkeypatch.setattr(lowering, "operators", lambda: {("resfx", "DeltaShortcut"): wrong})
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
    if Version(onnx.__version__) < Version("1.23"):
        pytest.skip("before onnx 1.23 its reference multiplies no bfloat16 matrices")
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
