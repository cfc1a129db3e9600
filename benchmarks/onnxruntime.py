"""ONNX Runtime on the CPU: plain nodes, function bodies and kernels: ``python -m benchmarks.onnxruntime``.

Every operator with a record, then whole models of twelve layers. ``plain nodes`` is ``profile="standard"``: what
PyTorch's exporter makes of the formula. ``body`` is the fused node with the function that comes with the file;
``kernel`` the same file with the library that ``python -m resfx kernels`` builds.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import resfx
from resfx.export import build_kernels, session, to_onnx
from resfx.ops.attention_read.formula import attention_read
from resfx.ops.channels.formula import combine, delta_write, mix
from resfx.ops.delta.formula import delta_shortcut
from resfx.ops.short_convolution.formula import short_convolution
from resfx.ops.sinkhorn.formula import sinkhorn
from resfx.ops.weighted_sum.formula import weighted_sum
from resfx.ops.window.formula import windowed_attention, windowed_attention_row

from .common import Case, group, start, write

Rows = Iterator[dict[str, Any]]


class Call(nn.Module):
    """A function of tensors as a model."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, a, b=None, c=None, d=None, e=None, f=None, g=None, h=None, i=None):  # noqa: ANN001, ANN201
        return self.function(*(x for x in (a, b, c, d, e, f, g, h, i) if x is not None))


FORMS = (("plain nodes", "standard", False), ("body", "portable", False), ("kernel", "portable", True))


def cases(
    model: nn.Module, inputs: tuple[Any, ...] | dict[str, Any], name: str, options: Any, forms: Any = None
) -> list[Case]:
    """The forms of a model that ``options`` have; their results are held against each other first."""
    forms = forms or options.forms
    args, kwargs = (inputs, None) if isinstance(inputs, tuple) else (None, inputs)
    leaves = [t for t in (inputs if args else kwargs.values()) if isinstance(t, Tensor)]  # type: ignore[union-attr]
    found, results = [], {}
    for form, profile, kernels in forms:
        path = options.folder / f"{name}-{profile}.onnx"
        if not path.exists():
            to_onnx(model, path, args, kwargs, check=False, dynamic=False, profile=profile)
        made = session(path, [options.provider], kernels=kernels and options.library, threads=options.threads)
        feeds = {i.name: t.numpy() for i, t in zip(made.get_inputs(), leaves, strict=True)}
        results[form] = torch.from_numpy(made.run(None, feeds)[0])
        on_cpu = options.provider == "CPUExecutionProvider"
        found.append(Case(form, functools.partial(made.run, None, feeds) if on_cpu else bound(made, feeds)))
    for form, result in results.items():
        torch.testing.assert_close(result, results["plain nodes"], rtol=1e-3, atol=1e-3, msg=f"{name}, {form}")
    return found


def bound(made: Any, feeds: dict[str, Any]) -> Callable[[], None]:
    """A run of a session on CUDA whose inputs and results stay there."""
    import onnxruntime

    binding = made.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for output in made.get_outputs():
        binding.bind_output(output.name, "cuda", 0)

    def run() -> None:
        made.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def one(title: str, function: Callable[..., Tensor], inputs: list[Tensor], options: Any, **facts: Any) -> Rows:
    """One operator; floor: its inputs in, its result out."""
    with torch.no_grad():
        moved = sum(t.nbytes for t in inputs) + function(*inputs).nbytes
    label = title.lower().replace(" ", "-") + "-" + "-".join(map(str, facts.values()))
    dtype = str(inputs[0].dtype)[6:]
    file = label.replace("[", "").replace("]", "").replace(" ", "")
    try:
        forms = cases(Call(function), tuple(inputs), file, options)
    except Exception as error:
        if not options.lenient:
            raise
        yield {"group": title, **facts, "case": "all", "failed": f"{type(error).__name__}: {str(error)[:300]}"}
        return
    yield from group(title, forms, "plain nodes", moved, options, **facts, dtype=dtype)


def operators(options: Any) -> Rows:
    """Every operator, float32."""
    rows, d = options.rows, 1024
    x, f = torch.randn(rows, d), torch.randn(rows, d)
    beta, v, share = torch.rand(rows, 1), torch.randn(rows, 1), torch.tensor(0.3)
    yield from one("Delta shortcut", lambda x, f, b, v, m: delta_shortcut(x, f, b, v, m), [x, f, beta, v, share],
                   options, shape=[rows, d], form="preserving")  # fmt: skip
    yield from one("Delta shortcut", lambda x, f, b, v: delta_shortcut(x, f, b, v, add=False), [x, f, beta, v],
                   options, shape=[rows, d], form="published")  # fmt: skip
    rows, d, n = 2048, 768, 4
    state, f, v = torch.randn(rows, n, d), torch.randn(rows, d), torch.randn(rows, n)
    write = lambda s, f, b, v, m: delta_write(s, f, b, v, m, 1e-10, True, True)
    yield from one("Wide delta shortcut", write, [state, f, beta[:rows], v, share], options, shape=[rows, n, d])
    weights, matrix = torch.rand(rows, n).softmax(-1), torch.randn(rows, n, n).softmax(-1)
    yield from one("Channels combined", lambda s, w: combine(s, w.unsqueeze(-1)), [state, weights], options,
                   shape=[rows, n, d])  # fmt: skip
    yield from one("Channels mixed", lambda s, f, w, m: mix(s, f, w, m, True), [state, f, weights, matrix], options,
                   shape=[rows, n, d])  # fmt: skip
    yield from one("Sinkhorn, 20 rounds", sinkhorn, [torch.randn(rows, n, n)], options, shape=[rows, n, n])
    for count in (4, 8):
        sources, query = [torch.randn(rows, d) for _ in range(count)], torch.randn(d)
        yield from one("Weighted sum over depth", lambda w, *s: weighted_sum(s, w), [torch.randn(count), *sources],
                       options, shape=[count, rows, d])  # fmt: skip
        read = lambda q, *s: attention_read(s, q, s[-1], eps=1e-6, relative=True)
        yield from one("Attention Residuals read", read, [query, *sources], options, shape=[count, rows, d])
    parts = [torch.randn(rows, 12, 64) for _ in range(9)]
    row = lambda q, *s: windowed_attention_row(q, s[:4], s[4:])
    yield from one("Depth attention over 4", row, parts, options, shape=[4, rows, 12, 64])
    for size, window in ((4096, 4), (4096, 16), (16384, 16)) if options.full else ((4096, 4), (4096, 16)):
        q, k, v = (torch.randn(2, 8, size // 2, 64) for _ in range(3))
        local = lambda q, k, v, w=window: windowed_attention(q, k, v, w)
        yield from one("Short window attention", local, [q, k, v], options, shape=[2, 8, size // 2, 64], window=window)
    x, taps = torch.randn(2, 2048, d), torch.randn(d, 4)
    for silu in (False, True):
        convolve = lambda x, w, silu=silu: short_convolution(x, w, None, None, silu, 3, 2048)
        title = f"Short convolution{', SiLU' if silu else ''}"
        yield from one(title, convolve, [x, taps], options, shape=[2, 2048, d])


METHODS: dict[str, Any] = {
    "ddl": resfx.DDL(),
    "expanded ddl": resfx.DDL(value_channels=4),
    "attnres": resfx.AttnRes(block=4),
    "denseformer": resfx.DenseFormer(dilation=4, period=5),
    "hyper_connections": resfx.HyperConnections(),
    "short_swa": resfx.ShortSWA(window=16),
    "short_conv": resfx.ShortConv(),
}


def models(options: Any) -> Rows:
    """GPT-2 of twelve layers, width 256, on two rows of 256 tokens; floor: the weights, once."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=12, n_embd=256, n_head=4, vocab_size=512, use_cache=False)
    model = GPT2LMHeadModel(config).eval()
    call = {"input_ids": torch.randint(0, 512, (2, 256))}
    floor = sum(p.nbytes for p in model.parameters())
    names = list(METHODS) if options.full else ["ddl", "attnres", "short_swa"]
    together = [Case("the model itself", cases(model, call, "model", options, FORMS[:1])[0].step)]
    for name in names:
        new = resfx.rewrite(model, METHODS[name], kwargs=call)
        with torch.no_grad():
            for parameter in new.new_parameters().values():
                parameter.add_(0.02 * torch.randn_like(parameter))
        print(f"exporting {name}", file=sys.stderr, flush=True)
        together += [Case(f"{name}, {c.name}", c.step) for c in cases(new, call, name.replace(" ", "-"), options)]
    yield from group("GPT-2 of twelve layers", together, "the model itself", floor, options, shape=[2, 256, 256],
                     dtype="float32")  # fmt: skip


GROUPS = {"operators": operators, "models": models}


def main() -> None:
    """Measure the groups asked for and write the results."""
    import onnxruntime

    options = start(__doc__ or "", arguments)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(options.folder or folder)
        options.library = build_kernels(Path(folder) / "kernels.so")
        options.provider, options.forms, options.lenient, options.rows = "CPUExecutionProvider", FORMS, False, 4096
        for name in options.only:
            rows = list(GROUPS[name](options))
            result = "onnxruntime" if name == "operators" else f"onnxruntime-{name}"
            write(result, rows, options, HEADS[name], COLUMNS[name], onnxruntime=onnxruntime.__version__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark can vary."""
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--folder", help="keep exported files here, and take those that are there")


HEADS = {
    "operators": "`ratio` is to the plain nodes: below 1 is faster. `to_floor` is to the time of moving inputs and"
    " result once at the copy bandwidth measured in the same rounds. Sizes are fixed in the files, which favours the"
    " plain nodes.",
    "models": "`ratio` is to the model before the rewrite. Sizes are fixed in the files.",
}
COLUMNS = {
    "operators": ("shape", "window", "form", "case", "ratio", "to_floor", "median_ms", "quartiles_ms"),
    "models": ("shape", "case", "ratio", "median_ms", "quartiles_ms"),
}


if __name__ == "__main__":
    main()
