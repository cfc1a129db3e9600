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
from hosts.triton_kernels import INTERPRETED, dtypes, inside, installed

from benchmarks.gpu.against import agree, draw, watched
from benchmarks.gpu.cases import ODD
from benchmarks.gpu.exact import EXACT
from benchmarks.gpu.operators import OPERATORS
from resfx.ops.attention_read import formula as read
from resfx.ops.delta import formula as delta
from resfx.ops.register import kernels_for
from resfx.ops.weighted_sum import formula as sums
from resfx.ops.window import formula as window

pytestmark = installed


@pytest.mark.skipif(INTERPRETED, reason="this is the run under the interpreter")
@pytest.mark.parametrize("chosen", [[], pytest.param(["-m", "matrix"], marks=pytest.mark.matrix)], ids=str)
def test_under_the_interpreter(chosen):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    files = sorted(map(str, Path(__file__).parent.glob("test_triton*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, *files], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_importing_the_library_does_not_import_triton():
    code = "import sys, resfx; resfx.methods.base.methods(); assert 'triton' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def odd_cases():
    """The first case of every operator in each of its types; the others in the matrix."""
    for name, cases in ODD.items():
        for i, case in enumerate(cases):
            for dtype in OPERATORS[name].types:
                yield pytest.param(name, case, dtype, marks=pytest.mark.matrix if i else ())


@inside
@pytest.mark.parametrize("name, case, dtype", [*odd_cases()])
def test_kernels_agree_with_formulas(name, case, dtype, kernels):
    """The cases that ``make gpu`` runs on a card."""
    operator = OPERATORS[name]
    args = ODD[name][case](dtype)
    with watched(kernels_for(operator.module, args)) as calls:
        agree(operator.public, operator.formula, args, dtype, operator.node)
    assert calls == {"forward": 1, "gradients": 1}


@inside
@dtypes
@pytest.mark.parametrize("statement", EXACT)
def test_what_holds_bit_for_bit(statement, dtype, kernels):
    pairs = list(EXACT[statement](dtype))
    assert pairs and all(torch.equal(got, want) for got, want in pairs)


@inside
def test_results_lie_in_memory_by_time(kernels):
    q, k, v = (draw(2, 7, 3, 5, dtype=torch.float32).transpose(1, 2) for _ in range(3))
    assert window._operator(q, k, v, None, 2, True, False, 0.3).transpose(1, 2).is_contiguous()


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
def test_lists_that_begin_anywhere_in_memory(kernels):
    flat = draw(50).float()
    sources = [flat[1:13].view(3, 4), flat[14:26].view(3, 4)]
    assert sources[0].data_ptr() % 16
    agree(sums._operator, sums.weighted_sum_formula, (sources, draw(2).float(), None), torch.float32)


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
