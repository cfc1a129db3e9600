"""What a new operator takes: a folder. It is made here, outside the package, and goes the whole way to ONNX."""

from __future__ import annotations

import shutil
import sys

import onnx
import pytest
import torch
from hosts.onnx_nodes import run
from torch import nn

import resfx.ops
from resfx.export import build_kernels, to_onnx
from resfx.ops.library import COMPILERS, operator_sources
from resfx.ops.record import operators

FILES = {
    "__init__.py": '"""A toy: ``x + factor * y``."""',
    "formula.py": """
from torch import Tensor
from resfx.ops.native import Native
from resfx.ops.register import fused

def toy_formula(x: Tensor, y: Tensor | None, factor: float) -> Tensor:
    return x if y is None else x + factor * y

toy = fused("toy", toy_formula, node=Native("toy"))
""",
    "onnx.py": """
def body(op, x, y, *, factor, stash_type):
    if y is None:
        return op.Identity(x)
    wide = op.Cast(y, to=stash_type)
    return op.Add(x, op.CastLike(op.Mul(wide, op.Cast(op.Constant(value_float=factor), to=stash_type)), x))
""",
    "record.py": """
from resfx.ops.record import Attribute, Operator, Port, stash_type
from .onnx import body

RECORDS = (
    Operator(
        name="Toy", torch_name="resfx::toy", doc="x + factor y",
        inputs=(Port("x", "T", "(..., d)"), Port("y", "T", "(..., d)", optional=True)),
        output=Port("z", "T", "(..., d)"),
        attributes=(Attribute("factor", float, "of y"), stash_type()),
        body=body, kernel="toy",
    ),
)
""",
    "kernel.h": """
#include "runtime.h"

namespace {

template <class T>
void toy(const Call& c) {  // what no body does: z is negative, so that a test can tell which ran
  Tensor x = c.in(0), y = c.in(1);
  T* z = c.out<T>(x.shape);
  for (size_t i = 0; i < x.count(); ++i)
    narrow(-widen(rows_of<T>(x)[i]) - (y ? c.kernel.real[0] * widen(rows_of<T>(y)[i]) : 0), z[i]);
}

}  // namespace
""",
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The operator's folder, as if it lay in the package."""
    folder = tmp_path / "ops" / "toy"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (tmp_path / "ops" / "no_operator").mkdir()
    (tmp_path / "ops" / "no_operator" / "__init__.py").write_text("")
    monkeypatch.setattr(resfx.ops, "__path__", [*resfx.ops.__path__, str(tmp_path / "ops")])
    from resfx.ops.toy import formula

    yield formula.toy
    for name in [n for n in sys.modules if n.startswith("resfx.ops.toy")]:
        del sys.modules[name]
    del resfx.ops.toy


class Model(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x, y):
        return self.operator(self.operator(x, y, 0.5), None, 2.0)


def test_a_folder_is_an_operator(toy, tmp_path, monkeypatch):
    assert operators()["resfx", "Toy"].torch_op is torch.ops.resfx.toy.default
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    made = to_onnx(Model(toy).eval(), tmp_path / "m.onnx", (x, y))
    assert made.nodes["resfx"] == 2 and set(made.differences) == {"onnxruntime", "reference"}
    assert sorted(f.overload for f in onnx.load(made.path).functions) == ["plain", "y"]
    torch.testing.assert_close(run(made.path, {"x": x, "y": y}, kernels=False)[0], x + 0.5 * y)

    headers, lines = operator_sources()
    assert [h.parent.name for h in headers].count("toy") == 1 and not any("no_operator" in str(h) for h in headers)
    assert '  to.push_back(record("Toy", t, "TT?", {"factor"}, {}, toy<T>, true));\n' in lines
    if any(map(shutil.which, COMPILERS)):
        monkeypatch.setattr("resfx.ops.library.FLAGS", ("-std=c++20", "-O0", "-fPIC", "-shared"))
        # The toy alone: every operator's kernels take a minute.
        monkeypatch.setattr("resfx.ops.library.folders", lambda: ("resfx.ops.toy",))
        library = build_kernels(tmp_path / "kernels.so", native=False)
        torch.testing.assert_close(run(made.path, {"x": x, "y": y}, kernels=library)[0], x + 0.5 * y)
