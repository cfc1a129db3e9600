"""How the search for residual adds scales: ``python -m benchmarks.scan_scaling``.

Scans one decoder at 1, 2 and 4 times its depth, and times the stages of a rewrite of the deepest. CPU seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from resfx.api import rewrite
from resfx.passes.capture import source_of
from resfx.passes.sites import find_sites
from resfx.passes.streams import find_streams


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
        start = time.process_time()
        result = call()
        best = min(best, time.process_time() - start)
    return best, result


def main() -> None:
    print(f"{'layers':>6} {'nodes':>7} {'capture s':>10} {'find s':>8} {'us/node':>8} {'find / capture':>15}")
    for layers in (25, 50, 100):
        model, call = decoder(layers)
        source = source_of(model, None, call)
        capture_s, capture = timed(lambda s=source, m=model: s.capture(m, s.call(*s.example)))
        find_s, (sites, _) = timed(lambda c=capture, m=model: find_sites(c.graph, m), 3)
        assert len(sites) == 2 * layers and len(find_streams(sites)) == 1
        nodes = len(capture.graph.nodes)
        each, share = 1e6 * find_s / nodes, find_s / capture_s
        print(f"{layers:6} {nodes:7} {capture_s:10.2f} {find_s:8.3f} {each:8.1f} {share:15.1%}")
    rewrite_s, _ = timed(lambda: rewrite(model, "ddl", (), call, check=False))
    print(f"rewrite of {layers} layers: {rewrite_s:.2f} s in all, of which capture is about {capture_s:.2f} s")


if __name__ == "__main__":
    main()
