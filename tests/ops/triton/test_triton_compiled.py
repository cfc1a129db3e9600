"""Triton's compiler takes the kernels as they are launched: machine code for a GPU, without one."""

from __future__ import annotations

import pytest
import torch
from hosts.triton_kernels import INTERPRETED, installed

from resfx.ops import register

pytestmark = [
    installed,
    pytest.mark.skipif(INTERPRETED, reason="the Triton interpreter compiles nothing"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
]


class NoDevice:
    """A driver whose GPU is not there, for the compiler to ask."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Kernels are compiled to machine code for an H100, and not launched: by name, grid and intermediate code."""
    from triton import runtime

    found = []
    run = runtime.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        assert kernel.asm["cubin"]
        name = f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}"
        found.append((name, grid, kernel.asm["ttir"]))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(runtime.JITFunction, "run", compile_only)
    monkeypatch.setattr(runtime.driver, "_active", NoDevice())
    return found


def launches(name, dtype):
    """The arguments of an operator as a model of width 80 hands them over."""
    x = torch.randn(2, 4, 80).to(dtype)
    return {
        "delta": [(x, x, x[..., :1].float(), x[..., :1].float(), torch.tensor(0.0), None, 1e-10, True)],
        "weighted_sum": [([x, x, x], torch.randn(3), x), ([x, x], torch.randn(2, 4, 2), None)],
        "attention_read": [([x] * 3, x[0, 0], x, None, 1e-6, True), ([x] * 2, x[0, 0], None, x[0, 0, 0], 1e-6, False)],
        "short_convolution": [
            (x, torch.randn(80, 4), torch.randn(80), x, True, 3, 4),
            (x, torch.randn(80, 4), None, None, False, 3, 4),
        ],
        "wide_mix": [(x, x[:, 0], x[:, :, 0], x[..., :4], unit) for unit in (True, False)],
        "wide_combine": [(x, x[..., :1], x[:, 0, :1]), (x, x[0, :, :1], None)],
        "wide_delta": [
            (x, x[:, 0], x[:, 0, :1], x[:, :, 0], m, 1e-10, True, True) for m in (torch.tensor(0.0), x[0, 0])
        ],
        "sinkhorn": [(torch.randn(2, 3, n, n), 20, newton) for n, newton in ((3, 8), (4, 0), (4, 8))],
        "windowed_attention": [
            (x.view(1, 2, 4, 80), x[:1].view(1, 1, 4, 80), x[:1].view(1, 1, 4, 80), m, 3, True, chunk, 0.1)
            for m, chunk in ((torch.ones(1, 4, dtype=torch.bool), False),)
        ],
    }[name]


KERNELS = {"windowed_attention": "window.triton"} | {
    f"wide_{n}": f"channels.triton_{n}" for n in ("mix", "delta", "combine")
}


@pytest.mark.every(3)
@pytest.mark.parametrize("dtype", [torch.bfloat16, *(pytest.param(t, marks=pytest.mark.matrix)
                                                     for t in (torch.float32, torch.float16))])  # fmt: skip
@pytest.mark.parametrize(
    "name",
    [
        "delta",
        "weighted_sum",
        "attention_read",
        "windowed_attention",
        "short_convolution",
        "wide_delta",
        "wide_mix",
        "wide_combine",
        "sinkhorn",
    ],
)
def test_kernels_compile_for_a_gpu(name, dtype, compiled):
    kernels = register._kernel_module(KERNELS.get(name, f"{name}.triton"))
    for args in launches(name, dtype):
        assert kernels.supported(*args)
        out = kernels.forward(*args)
        kernels.gradients(torch.empty_like(out), *args)
    assert {n.partition(".")[2].partition("_")[2].partition("_")[0] for n, *_ in compiled} >= {"forward", "backward"}


@pytest.mark.parametrize("name", ["weighted_sum", "attention_read"])
def test_offsets_into_the_gradients_of_many_sources_are_wide(name, compiled):
    """``n`` sources together may have more elements than 32 bits count."""
    kernels = register._kernel_module(f"{name}.triton")
    args = launches(name, torch.bfloat16)[0]
    kernels.gradients(torch.empty_like(args[0][0]), *args)
    _, _, text = next(c for c in compiled if c[0].endswith("_backward"))
    products = [line for line in text.splitlines() if "arith.muli" in line]
    assert products and not [line for line in products if "i32" in line]


@pytest.mark.parametrize("name", ["windowed_attention", "short_convolution"])
def test_a_large_batch_fits_the_grid(name, compiled):
    """CUDA takes more than 65535 programs along its first axis alone."""
    kernels = register._kernel_module(KERNELS.get(name, f"{name}.triton"))
    x, batch = torch.zeros(70_000, 1, 1, 16), 70_000
    args = (x, x, x, None, 2, True, False, 1.0)
    if name == "short_convolution":
        args = (x[:, 0], torch.zeros(16, 2), None, None, False, 1, 1)
    kernels.gradients(torch.empty_like(kernels.forward(*args)), *args)
    assert all(grid[0] >= batch and max((*grid[1:], 1)) <= 65535 for _, grid, _ in compiled)


def test_offsets_of_far_rows_are_wide(compiled):
    """A row of a long sequence times the step between rows may pass 32 bits."""
    args = launches("windowed_attention", torch.bfloat16)[0]
    register._kernel_module(KERNELS["windowed_attention"]).forward(*args)
    _, _, text = compiled[0]
    columns = [line for line in text.splitlines() if "arith.muli" in line and "x1xi" in line]
    assert columns and not [line for line in columns if "x1xi32" in line]
