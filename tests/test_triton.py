"""Triton kernels against the formulas, in a process of their own: the interpreter is chosen before Triton is imported.

No GPU is needed, and none is used.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
inside = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_under_the_interpreter")


@pytest.mark.skipif(INTERPRETED, reason="already there")
def test_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_importing_the_library_does_not_import_triton():
    code = "import sys, resfx; resfx.ops.method.methods(); assert 'triton' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@inside
@pytest.mark.parametrize("width", [3, 20, 64, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mix", ["none", "scalar", "channel"])
@pytest.mark.parametrize("base", ["x", "sum", "total"])
def test_delta_shortcut(base, mix, dtype, width):
    from resfx.ops import _delta_triton as kernels
    from resfx.ops.delta import delta_formula, delta_gradients

    draw = lambda *s: torch.randn(*s, dtype=torch.float64)
    x, f, grad, b, v = draw(2, 3, width), draw(2, 3, width), draw(2, 3, width), draw(2, 3, 1), draw(2, 3, 1)
    m = {"none": None, "scalar": torch.tensor(0.3), "channel": draw(width)}[mix]
    x, f, grad = (t.to(dtype) for t in (x, f, grad))
    b, v = b.float(), v.float()
    m = None if m is None else m.to(dtype)
    total = x + 0.5 * f if base == "total" else None
    add = base != "x"
    wide = lambda t: None if t is None else t.double()
    want = delta_formula(*map(wide, (x, f, b, v, m, total)), 1e-4, add)
    got = kernels.forward(x, f, b, v, m, total, 1e-4, add)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}[dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * float(want.abs().max()))
    wanted = delta_gradients(*map(wide, (grad, x, f, b, v, m)), total is not None, 1e-4, add)
    found = kernels.gradients(grad, x, f, b, v, m, total is not None, 1e-4, add)
    for a, e, leaf in zip(found, wanted, (x, f, b, v, m), strict=True):
        assert (a is None) == (leaf is None)
        if a is not None:
            assert a.dtype == leaf.dtype and a.shape == leaf.shape
            torch.testing.assert_close(a.double(), e, rtol=2 * tolerance, atol=2 * tolerance * float(e.abs().max()))


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_closed_mix_is_the_plain_add_and_layouts_do_not_matter(dtype):
    from resfx.ops import _delta_triton as kernels

    # Whole numbers: the interpreter cuts off where a GPU rounds to bfloat16, so sums must need neither.
    x, f, grad = (torch.randint(-60, 60, (24, 5)).to(dtype).T for _ in range(3))
    b, v, m = torch.rand(5, 1), torch.randn(1, 1).expand(5, 1), torch.zeros((), dtype=dtype)
    assert torch.equal(kernels.forward(x, f, b, v, m, None, 1e-10, True), x + f)
    gx, gf, gb, gv, gm = kernels.gradients(grad, x, f, b, v, m, False, 1e-10, True)
    assert torch.equal(gx, grad) and torch.equal(gf, grad) and not gb.any() and not gv.any() and gm.any()


@inside
def test_more_rows_than_programs(monkeypatch):
    from resfx.ops import _delta_triton as kernels
    from resfx.ops.delta import delta_gradients

    monkeypatch.setattr(kernels, "PROGRAMS", 4)
    x, f, grad, b, v, m = (torch.randn(*s) for s in ((11, 7), (11, 7), (11, 7), (11, 1), (11, 1), (7,)))
    args = (grad, x, f, b, v, m, False, 1e-6, True)
    for a, e in zip(kernels.gradients(*args), delta_gradients(*args), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@inside
def test_the_registered_operator_takes_the_kernels(monkeypatch):
    """The path of a CUDA tensor, with the kernels interpreted: same values and gradients as the formula's."""
    from resfx.ops import _delta_triton, delta

    called = []

    class Kernels:
        forward = staticmethod(lambda *a: called.append("forward") or _delta_triton.forward(*a))
        gradients = staticmethod(lambda *a: called.append("gradients") or _delta_triton.gradients(*a))

    monkeypatch.setattr(delta, "triton_kernels", lambda name, x: Kernels)
    args = [t.requires_grad_() for t in (torch.randn(3, 9), torch.randn(3, 9), torch.rand(3, 1), torch.randn(3, 1))]
    out = torch.ops.resfx.delta_shortcut(*args, None, None, 1e-8, False)
    torch.testing.assert_close(out, delta.delta_formula(*args, None, None, 1e-8, False))
    grads = torch.ops.resfx.delta_shortcut_gradients(
        torch.ones(3, 9), *(a.detach() for a in args), None, False, 1e-8, False
    )
    want = torch.autograd.grad(delta.delta_formula(*args, None, None, 1e-8, False).sum(), args)
    for a, e in zip(grads[:4], want, strict=True):
        torch.testing.assert_close(a, e)
    assert called == ["forward", "gradients"]
