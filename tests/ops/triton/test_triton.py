"""Triton kernels against the formulas, in a process of their own: the interpreter is chosen before Triton is imported.

No GPU is needed, and none is used. Here: what a site, a read over depth and a mixer over the sequence launch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hosts.triton_kernels import INTERPRETED, agree, draw, dtypes, inside, installed, turned

from resfx.ops.attention_read import formula as read
from resfx.ops.delta import formula as delta
from resfx.ops.short_convolution import formula as convolution
from resfx.ops.weighted_sum import formula as sums
from resfx.ops.window import formula as window

pytestmark = installed


@pytest.mark.skipif(INTERPRETED, reason="this is the run under the interpreter")
def test_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    files = sorted(map(str, Path(__file__).parent.glob("test_triton*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_importing_the_library_does_not_import_triton():
    code = "import sys, resfx; resfx.methods.base.methods(); assert 'triton' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@inside
@dtypes
@pytest.mark.parametrize("width", [3, 129])
@pytest.mark.parametrize("mix", ["none", "scalar", "channel"])
@pytest.mark.parametrize("base", ["x", "sum", "total"])
def test_delta_shortcut(base, mix, dtype, width, kernels):
    x, f, b, v = draw(2, 3, width), draw(2, 3, width), draw(2, 3, 1), draw(2, 3, 1)
    m = {"none": None, "scalar": torch.tensor(0.3), "channel": draw(width)}[mix]
    total = (x + 0.5 * f).to(dtype) if base == "total" else None
    cast = lambda t: None if t is None else t.to(dtype)
    args = (cast(x), cast(f), b.float(), v.float(), cast(m), total, 1e-4, base != "x")
    agree(delta._operator, delta.delta_formula, args, dtype)


@inside
@dtypes
def test_a_closed_mix_is_the_plain_add_and_layouts_do_not_matter(dtype):
    from resfx.ops.delta import triton as kernels

    # Whole numbers: the interpreter cuts off where a GPU rounds to bfloat16, so sums must need neither.
    x, f, grad = (torch.randint(-60, 60, (24, 5)).to(dtype).T for _ in range(3))
    b, v, m = torch.rand(5, 1), torch.randn(1, 1).expand(5, 1), torch.zeros((), dtype=dtype)
    assert torch.equal(kernels.forward(x, f, b, v, m, None, 1e-10, True), x + f)
    gx, gf, gb, gv, gm, *_ = kernels.gradients(grad, x, f, b, v, m, None, 1e-10, True)
    assert torch.equal(gx, grad) and torch.equal(gf, grad) and not gb.any() and not gv.any() and gm.any()


@inside
def test_more_rows_than_programs(monkeypatch, kernels):
    from resfx.ops.attention_read import triton as _attention_read_triton
    from resfx.ops.delta import triton as _delta_triton

    for module in (_delta_triton, _attention_read_triton):
        monkeypatch.setattr(module, "PROGRAMS", 4)
    args = (draw(11, 7), draw(11, 7), draw(11, 1), draw(11, 1), draw(7), None, 1e-6, True)
    agree(delta._operator, delta.delta_formula, [a.float() if torch.is_tensor(a) else a for a in args], torch.float32)
    sources, query = [draw(11, 7).float() for _ in range(3)], draw(7).float()
    args = (sources, query, None, None, 1e-6, False)
    agree(read._operator, read.attention_read_formula, args, torch.float32)


@inside
@dtypes
@pytest.mark.parametrize("count, width", [(1, 5), (2, 64), (5, 33)])
@pytest.mark.parametrize("relative, base, gate", [(True, True, False), (False, False, False), (False, True, True)])
def test_attention_read(count, width, relative, base, gate, dtype, kernels):
    sources = [draw(2, 3, width, dtype=dtype) for _ in range(count)]
    sources[0] = turned(sources[0])
    added = turned(draw(2, 3, width, dtype=dtype)) if base else None
    opened = draw(dtype=dtype) if gate else None
    args = (sources, draw(width, dtype=dtype), added, opened, 1e-6, relative)
    agree(read._operator, read.attention_read_formula, args, dtype)


@inside
@dtypes
@pytest.mark.parametrize("count", [2, 3, 7, 41])
def test_a_zero_query_keeps_the_base_bit_for_bit(count, dtype, kernels):
    sources, base = [draw(4, 9, dtype=dtype) for _ in range(count)], draw(4, 9, dtype=dtype)
    got = read.attention_read(sources, torch.zeros(9, dtype=dtype), base, eps=1e-6, relative=True)
    assert torch.equal(got, base)


@inside
@dtypes
@pytest.mark.parametrize("count, width", [(1, 5), (6, 33)])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("base", [False, True])
def test_weighted_sum(count, width, per_token, base, dtype, kernels):
    sources = [draw(2, 3, width, dtype=dtype) for _ in range(count)]
    sources[-1] = sources[-1][:, :1].expand(2, 3, width)
    weights = turned(draw(2, 3, count)).float() if per_token else draw(count, dtype=dtype)
    added = turned(draw(2, 3, width, dtype=dtype)) if base else None
    agree(sums._operator, sums.weighted_sum_formula, (sources, weights, added), dtype)


@inside
def test_lists_that_begin_anywhere_in_memory(kernels):
    flat = draw(50).float()
    sources = [flat[1:13].view(3, 4), flat[14:26].view(3, 4)]
    assert sources[0].data_ptr() % 16
    agree(sums._operator, sums.weighted_sum_formula, (sources, draw(2).float(), None), torch.float32)


WINDOWS = {
    "causal, groups": (7, 7, 3, 4, 2, True, False, False),
    "causal, padded, blocks": (70, 70, 5, 2, 1, True, False, True),
    "last queries": (4, 45, 40, 2, 2, True, False, True),
    "centred": (37, 37, 20, 2, 2, False, False, False),
    "centred, padded": (9, 9, 4, 2, 1, False, False, True),
    "chunks so far": (37, 37, 20, 2, 1, True, True, True),
    "chunks": (37, 37, 5, 1, 1, False, True, True),
    "beyond the length": (5, 5, 30, 1, 1, True, False, False),
}


@inside
@dtypes
@pytest.mark.parametrize("form", WINDOWS)
def test_windowed_attention(form, dtype, kernels):
    size, length, reads, heads, shared, causal, chunk, masked = WINDOWS[form]
    q = draw(2, size, heads, 5, dtype=dtype).transpose(1, 2)
    k, v = draw(2, shared, length, 5, dtype=dtype), draw(2, length, shared, 18, dtype=dtype).transpose(1, 2)
    mask = torch.arange(length) >= torch.tensor([[0], [length // 2 + 1]]) if masked else None
    args = (q, k, v, mask, reads, causal, chunk, 0.3)
    agree(window._operator, window.windowed_attention_formula, args, dtype)
    out = window._operator(*args)
    assert out.transpose(1, 2).is_contiguous()


@inside
def test_windows_of_one_and_free_leading_axes(kernels):
    q, k, v = (draw(2, 3, 2, 6, 4).float() for _ in range(3))
    assert torch.equal(window.windowed_attention(q, k, v, 1), v)
    args = (q, k, v, torch.rand(3, 6) > 0.3, 2, True, False, 0.5)
    agree(window._operator, window.windowed_attention_formula, args, torch.float32)


@inside
def test_windows_over_parts_of_one_projection(kernels):
    q, k, v = (x.unflatten(-1, (2, 4)).transpose(1, 2) for x in draw(2, 7, 24).float().chunk(3, -1))
    assert q.stride(2) == 24
    agree(window._operator, window.windowed_attention_formula, (q, k, v, None, 3, True, False, 0.5), torch.float32)


@inside
@dtypes
@pytest.mark.parametrize("length, size, taps, left", [(5, 5, 4, 3), (70, 70, 3, 1), (9, 6, 4, 0), (3, 3, 1, 0)])
@pytest.mark.parametrize("silu, extras", [(False, False), (True, True)])
def test_short_convolution(length, size, taps, left, silu, extras, dtype, kernels):
    x, base = turned(draw(2, length, 7, dtype=dtype)), turned(draw(2, size, 7, dtype=dtype))
    bias = draw(7, dtype=dtype) if extras else None
    args = (x, draw(7, taps, dtype=dtype), bias, base if extras else None, silu, left, size)
    agree(convolution._operator, convolution.short_convolution_formula, args, dtype)
