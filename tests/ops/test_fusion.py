"""Compiled, an operator and the norm behind it are one loop over rows: a read over depth, a delta site."""

from __future__ import annotations

import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F

import resfx
from resfx.methods.base import Place
from resfx.ops.attention_read.formula import attention_read
from resfx.ops.inductor import column_sum


def row_loops(function, *args):
    """How many loops over rows the C++ of a compiled forward pass has; it must agree with the function."""
    torch._dynamo.reset()
    with torch.no_grad():
        got, (code,) = run_and_get_code(torch.compile(function, fullgraph=True, dynamic=False), *args)
        torch.testing.assert_close(got, function(*args), rtol=1e-4, atol=1e-5)
    assert code.count("async_compile.cpp_pybinding(") == 1
    if torch.__version__ < "2.13":
        pytest.skip("compilers before torch 2.13 join fewer loops, so their number says nothing")
    return code.count("for(int64_t x0=")


@pytest.mark.matrix
@pytest.mark.parametrize("relative", [False, True])
def test_a_read_and_the_norm_behind_it(relative):
    sources, query = [torch.randn(4, 32) for _ in range(5)], torch.randn(32)

    def read(base, query, *sources):
        stream = attention_read(sources, query, base if relative else None, eps=1e-6, relative=relative)
        return stream, F.rms_norm(stream, (32,), eps=1e-6)

    assert row_loops(read, torch.randn(4, 32), query, *sources) == 1


@pytest.mark.parametrize("start", ["preserve", "published"])
def test_gates_shortcut_add_and_the_norm_behind_it(start):
    place = Place(width=32, context_width=32, kind="mlp", depth=0, dtype=torch.float32, device=torch.device("cpu"))
    site = resfx.DDL(start=start).build(place)
    with torch.no_grad():
        for parameter in site.parameters():
            parameter.normal_()

    def call(x, f, c):
        stream = site(x, f, c)
        return stream, F.rms_norm(stream, (32,), eps=1e-6)

    assert row_loops(call, *(torch.randn(4, 32) for _ in range(3))) == 1


def test_gradients_of_the_gates_walk_down_no_column():
    """They are sums over all rows: matrix products, one for each of the two gates."""
    place = Place(width=32, context_width=32, kind="mlp", depth=0, dtype=torch.float32, device=torch.device("cpu"))
    site = resfx.DDL().build(place)
    given = [torch.randn(4, 32, requires_grad=True) for _ in range(3)]
    torch._dynamo.reset()
    call = torch.compile(site, fullgraph=True, dynamic=False)
    _, (_, backward) = run_and_get_code(lambda: call(*given).sum().backward())
    assert len(re.findall(r"extern_kernels\.mm\(reinterpret_tensor\(\w+, \(1, 4\)", backward)) == 2


@pytest.mark.parametrize("weighed", [False, True])
def test_sums_over_all_rows_stay_in_float32_under_autocast(weighed):
    x, share = torch.randn(2, 9, 32), torch.randn(2, 9, 1) if weighed else None
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.compile(column_sum, backend="aot_eager", fullgraph=True)(x, share)
    torch.testing.assert_close(got, column_sum(x, share))


@pytest.mark.every(2)
@pytest.mark.parametrize("kernel", [1, 4])
def test_a_short_convolution_is_vectorised(kernel):
    place = Place(width=64, context_width=64, kind="mlp", depth=0, dtype=torch.float32, device=torch.device("cpu"))
    layer, x = resfx.ShortConv(kernel=kernel, start="published").build(place), torch.randn(2, 8, 64, requires_grad=True)
    torch._dynamo.reset()
    call = torch.compile(layer, fullgraph=True, dynamic=False)
    got, (forward, _) = run_and_get_code(lambda: torch.autograd.grad(call(x).sum(), [x, layer.weight]))
    torch.testing.assert_close(got, torch.autograd.grad(layer(x).sum(), [x, layer.weight]))
    assert "Vectorized<float>::loadu(in_ptr" in forward
