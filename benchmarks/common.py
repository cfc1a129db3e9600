"""What the benchmarks share: a steady allocator, cases timed in turns, floors from measured bandwidth, result files.

Every figure is a ratio of two medians taken in the same rounds of the same process. On a machine that others use,
times mean nothing on their own; ratios hold as long as the neighbours disturb all cases alike, which the turns are for.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from resfx.comparison.measure import Runner, peak_memory, quartiles

from .clock import CudaClock

MODES = ("forward", "training")
RESULTS = Path(__file__).parent / "results"
DATA = RESULTS / "data"
ALLOCATOR = {  # without these glibc returns large tensors to the system and faults every page again on each call
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
COMPILER: dict[str, Any] = {}  # options of torch.compile for all cases, beside those for fixed shapes


def start(description: str, arguments: Callable[[argparse.ArgumentParser], None] = lambda p: None) -> Any:
    """Parse the command line; start the process again if the allocator's settings are not yet in its environment."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds of every group (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--full", action="store_true", help="all shapes, not the small set")
    arguments(parser)
    options = parser.parse_args()
    if any(key not in os.environ for key in ALLOCATOR):
        os.environ.update(ALLOCATOR)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    torch.set_num_threads(options.threads)
    os.environ["RESFX_NATIVE"] = "0"  # plain torch, whatever is built here, where a case does not ask for kernels
    warnings.filterwarnings("ignore")  # of compilers, about themselves
    torch.manual_seed(0)
    return options


@dataclass
class Case:
    """One way of doing a group's work.

    Attributes:
        step: does it once.
        first: seconds of the first call, compilation included.
        samples: seconds of each measured call.
        host: on CUDA, seconds that the host took to launch each.
    """

    name: str
    step: Callable[[], Any]
    first: float = 0.0
    samples: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    failed: str = ""


def clock(device: str, threads: int) -> Callable[[Callable[[], Any]], float]:
    """Seconds of one call: CPU time of one thread, wall time of several, events on CUDA."""
    read = time.thread_time if threads == 1 else time.perf_counter

    def on_cpu(step: Callable[[], Any]) -> float:
        begin = read()
        step()
        return read() - begin

    def on_cuda(step: Callable[[], Any]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    return on_cuda if device == "cuda" else on_cpu


def measure(cases: Sequence[Case], options: Any) -> None:
    """Time all cases in turns, forwards and backwards; a case that raises keeps its reason and drops out."""
    timed = CudaClock(options.device) if options.device == "cuda" else clock(options.device, options.threads)
    for case in cases:
        begin = time.perf_counter()
        try:
            case.step()
            if isinstance(timed, CudaClock):
                torch.cuda.synchronize()  # an error of this case is told here, not in the next one's
            case.first = time.perf_counter() - begin
            case.step()
        except Exception as error:
            case.failed = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
    alive = [c for c in cases if not c.failed]
    gc.collect()
    gc.disable()
    for number in range(options.rounds):
        for case in alive if number % 2 == 0 else alive[::-1]:
            case.samples.append(timed(case.step))
            if isinstance(timed, CudaClock):
                case.host.append(timed.host)
    gc.enable()


def group(
    title: str, cases: Sequence[Case], baseline: str, floor_bytes: int, options: Any, **facts: Any
) -> list[dict[str, Any]]:
    """Measure a group beside a plain copy of tensors out of cache, and return its rows.

    Args:
        baseline: name of the case that ratios are taken to.
        floor_bytes: bytes that must cross memory: each input read once, each output written once.
        facts: shape, dtype and the like, kept in every row.
    """
    print(title, *(f"{k}={v}" for k, v in facts.items()), file=sys.stderr, flush=True)
    size = 256 * 2**18 if options.device == "cuda" else 24 * 2**18  # out of cache, on a CPU under glibc's threshold
    source = torch.ones(size, device=options.device)
    target = torch.empty_like(source)
    copy = Case("copy", lambda: target.copy_(source))
    measure([copy, *cases], options)
    bandwidth = 2 * source.numel() * source.element_size() / quartiles(copy.samples)[1]
    floor = floor_bytes / bandwidth
    base = next((quartiles(c.samples)[1] for c in cases if c.name == baseline and c.samples), None)
    rows = []
    for case in cases:
        row: dict[str, Any] = {"group": title, **facts, "case": case.name, "baseline": baseline}
        if case.failed:
            rows.append({**row, "failed": case.failed})
            continue
        low, middle, high = quartiles(case.samples)
        row |= {
            "median_ms": middle * 1e3, "quartiles_ms": [low * 1e3, high * 1e3], "first_call_s": case.first,
            "ratio": middle / base if base else None, "to_floor": middle / floor,
            "peak_MiB": peak_memory(Runner(case.step), torch.device(options.device)) / 2**20,
            "floor_bytes": floor_bytes, "copy_GB_per_s": bandwidth / 1e9, "rounds": len(case.samples),
        }  # fmt: skip
        if case.host:
            row["host_ms"] = quartiles(case.host)[1] * 1e3
        rows.append(row)
        print(f"  {case.name:34s} {middle * 1e3:9.3f} ms  {row['ratio'] or 0:7.2f}  {middle / floor:7.2f} floor",
              file=sys.stderr, flush=True)  # fmt: skip
    return rows


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for fixed shapes, with a code object of its own so that no other case shares its cache."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__code__ = call.__code__.replace(co_name=f"call_{id(call)}")
    return torch.compile(call, fullgraph=True, dynamic=False, **COMPILER)


def steps(function: Callable[..., Any], inputs: Sequence[torch.Tensor], mode: str) -> Callable[[], Any]:
    """One call without gradients (``forward``), or with the gradients of all inputs (``training``)."""
    if mode == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return function(*inputs)

        return forward
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    weights: list[torch.Tensor] = []

    def training() -> Any:
        output = function(*leaves)
        if not weights:
            weights.append(torch.randn_like(output))
        return torch.autograd.grad(output, leaves, weights[0], allow_unused=True)

    return training


def cases(named: Mapping[str, Callable[..., Any]], inputs: Sequence[torch.Tensor], mode: str) -> list[Case]:
    """A case of each function; names that end in ``compiled`` are compiled. Unused inputs have no gradient."""
    make = lambda n, f: compiled(f) if n.endswith("compiled") else f
    return [Case(n, steps(make(n, f), inputs, mode)) for n, f in named.items()]


def setting(options: Any) -> dict[str, Any]:
    """Where and how the figures were taken."""
    cuda = options.device == "cuda"
    given = shlex.join(Path(a).name if os.sep in a and Path(a).exists() else a for a in sys.argv[1:])
    return {
        "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} {given}".strip(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        "threads": options.threads, "rounds": options.rounds, "torch": torch.__version__,
        "python": platform.python_version(), "allocator": ALLOCATOR,
        "clock": "CUDA events" if cuda else "CPU time of the thread" if options.threads == 1 else "wall time",
    }  # fmt: skip


def write(
    name: str,
    rows: list[dict[str, Any]],
    options: Any,
    head: str,
    columns: Sequence[str],
    quiet: bool = False,
    **changes: Any,
) -> None:
    """Write ``results/<name>.md``, with the setting, what the columns mean and a table per group, and its figures to
    ``results/data/<name>.json``."""
    DATA.mkdir(parents=True, exist_ok=True)
    where = setting(options) | changes
    (DATA / f"{name}.json").write_text(json.dumps({"setting": where, "rows": rows}, indent=1) + "\n")
    note = (
        "Absolute times were taken on cores that others use, and mean nothing. Ratios are of medians of calls taken in"
        " turns in one process; the quartiles show the spread."
    )
    machine = f"{where['device']}, {where['threads']} threads, torch {where['torch']}, {where['clock']}"
    lines = [f"# {name.capitalize()}", "", head, "", note, "", f"    {where['command']}", "",
             f"{machine}, {where['rounds']} rounds."]  # fmt: skip
    titles = dict.fromkeys(r["group"] for r in rows)
    for title in titles:
        lines += ["", f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        for row in (r for r in rows if r["group"] == title):
            lines.append("| " + " | ".join(cell(row, c) for c in columns) + " |")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    if not quiet:
        print(f"wrote {RESULTS / name}.md and {DATA / name}.json", file=sys.stderr)


def cell(row: Mapping[str, Any], column: str) -> str:
    """A figure of a row, as tables have it."""
    value = row.get(column)
    if column == "median_ms" and "failed" in row:
        return f"failed: {row['failed']}"
    if column == "shape" and value:
        return " x ".join(map(str, value))
    if isinstance(value, list):
        return " to ".join(f"{v:.3g}" for v in value)
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
