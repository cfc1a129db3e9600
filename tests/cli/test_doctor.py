"""What the doctor finds, and what it says to do."""

from __future__ import annotations

import json

import pytest
import torch

from resfx.cli import doctor
from resfx.cli.cli import main
from resfx.cli.doctor import diagnose, parts_of


def by_name(diagnosis):
    return {(f.group, f.what): f for f in diagnosis.findings}


@pytest.fixture
def wanted(monkeypatch):
    """What the package requires, and which versions there are of it."""

    def want(lines, versions):
        monkeypatch.setattr(doctor, "requires", lambda name: lines)
        monkeypatch.setattr(doctor, "_version_of", versions.get)

    return want


def test_it_prints_what_there_is(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resfx ") and torch.__version__ in out and "CPU kernels" in out and "providers" in out
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == diagnose().to_dict()


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("torch>=2.11", ("torch", "2.11", "")),
        ("torchvision; extra == 'timm'", ("torchvision", "", "timm")),
        ('triton>=3.6; platform_system == "Linux" and extra == "triton"', ("triton", "3.6", "triton")),
        ('onnxruntime-gpu>=1.27; extra == "onnx-gpu"', ("onnxruntime-gpu", "1.27", "onnx-gpu")),
    ],
)
def test_requirements_are_read(line, parts):
    assert parts_of(line) == parts


def test_what_is_missing_or_old_is_said_with_what_to_do(wanted, capsys):
    lines = ["torch>=2.11", "numpy>=1.26", 'timm>=1.0.20; extra == "timm"', 'pytest>=8; extra == "dev"']
    wanted(lines, {"torch": "2.9.1", "numpy": "1.26.0"})
    found = by_name(diagnose())
    assert "older than 2.11" in found["needed", "torch"].found
    assert found["needed", "torch"].remedy == "pip install 'torch>=2.11'"
    assert not found["needed", "numpy"].remedy
    assert found["extra timm", "timm"].remedy == "pip install 'resfx[timm]'"
    assert ("extra dev", "pytest") not in found
    assert main(["doctor"]) == 1, "what is needed is too old"
    wanted(lines, {"torch": "2.11.0", "numpy": "2.0"})
    assert main(["doctor"]) == 0, "an extra may be missing"


@pytest.mark.parametrize(
    ("there", "rows"),
    [({"onnxruntime"}, {"onnxruntime"}), ({"onnxruntime-gpu"}, {"onnxruntime-gpu"}), (set(), {"onnxruntime"}),
     ({"onnxruntime", "onnxruntime-gpu"}, {"onnxruntime", "onnxruntime-gpu", "onnxruntime and onnxruntime-gpu"})],
)  # fmt: skip
def test_one_onnx_runtime_is_enough_and_two_are_too_many(wanted, there, rows):
    lines = ['onnxruntime>=1.27; extra == "onnx"', 'onnxruntime-gpu>=1.27; extra == "onnx-gpu"']
    wanted(lines, dict.fromkeys(there, "1.30"))
    found = [f for f in diagnose().findings if f.what.startswith("onnxruntime")]
    assert {f.what for f in found} == rows
    assert bool([f for f in found if f.remedy]) == (len(there) != 1)


def test_kernels_that_do_not_load_are_told(tmp_path, monkeypatch):
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"nothing")
    monkeypatch.setattr(doctor, "built_kernels", lambda: broken)
    finding = by_name(diagnose())["CPU kernels", "library"]
    assert "does not load" in finding.found and finding.remedy == "python -m resfx kernels"
    monkeypatch.setattr(doctor, "built_kernels", lambda: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    found = by_name(diagnose())
    assert "C++ compiler" in found["CPU kernels", "library"].remedy and found["CPU kernels", "C++ compiler"].remedy
