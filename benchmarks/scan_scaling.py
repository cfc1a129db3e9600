"""How the search for residual adds and the rewriting scale: ``python -m benchmarks.scan_scaling``.

Decoders of one width and growing depth. Each is captured once; the stages after it are timed on that graph: finding
adds and streams, putting Deep Delta Learning in their place, writing the code of the graph.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from resfx.api import copy_sharing_parameters
from resfx.methods.base import method_of
from resfx.passes.capture.source import source_of
from resfx.passes.find.detect import find_sites
from resfx.passes.fold.whole import function_of
from resfx.passes.scopes.application import Application
from resfx.passes.scopes.apply import apply_method
from resfx.passes.scopes.surgery import Surgery

from .common import start, write

DEPTHS = (25, 50, 100)


def decoder(layers: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A Llama of small width."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval(), {"input_ids": torch.ones(2, 7).long(), "use_cache": False}


def timed(call: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """The least CPU seconds of several runs, and the result."""
    best, result = float("inf"), None
    for _ in range(times):
        begin = time.process_time()
        result = call()
        best = min(best, time.process_time() - begin)
    return best, result


def exporting() -> list[float]:
    """A list that collects the CPU seconds of every ``torch.export.export`` from now on."""
    spent: list[float] = []
    export = torch.export.export

    def measured(*args: Any, **kwargs: Any) -> Any:
        seconds, program = timed(lambda: export(*args, **kwargs))
        spent.append(seconds)
        return program

    torch.export.export = measured
    return spent


def row(layers: int, spent: list[float]) -> dict[str, Any]:
    """Capture one decoder and time what comes after."""
    model, call = decoder(layers)
    source = source_of(model, None, call)
    tree = copy_sharing_parameters(model)
    capture_s, capture = timed(lambda: source.capture(tree, source.call(*source.example or ((), {}))))
    nodes = len(capture.graph.nodes)
    find_s, (sites, _, streams) = timed(lambda: find_sites(capture.graph, tree), 3)
    assert len(sites) == 2 * layers and len(streams) == 1
    application = Application(method_of("ddl", None), key="ddl")
    surgery = Surgery(capture.graph, tree, streams)
    apply_s, _ = timed(lambda: apply_method(surgery, sites, application))
    code_s, _ = timed(lambda: function_of(capture.graph))
    export_s = spent[-1]
    ours = find_s + apply_s + code_s
    return {
        "group": "Llama, width 32, 2 sequences of 7", "layers": layers, "nodes": nodes, "export_s": export_s,
        "normalise_s": capture_s - export_s, "find_s": find_s, "find_us_per_node": 1e6 * find_s / nodes,
        "rewrite_s": apply_s, "code_s": code_s, "share_of_export": (find_s + apply_s) / export_s,
        "with_code": ours / export_s,
    }  # fmt: skip


def main() -> None:
    """Measure every depth and write the table."""
    options = start(__doc__ or "")
    spent = exporting()
    row(2, spent)  # imports and first-use costs
    rows = []
    for layers in DEPTHS:
        rows.append(row(layers, spent))
        print(rows[-1], file=sys.stderr, flush=True)
    head = (
        "CPU seconds of each stage, once. `export_s` is `torch.export.export` alone; `normalise_s` the rest of the"
        " capture; `find_s` sites and streams; `rewrite_s` Deep Delta Learning at every site, its modules built;"
        " `code_s` the graph's code. `share_of_export` is finding and rewriting over exporting."
    )
    columns = tuple(k for k in rows[0] if k != "group")
    write("scan_scaling", rows, options, head, columns, rounds=1)


if __name__ == "__main__":
    main()
